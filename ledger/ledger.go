package ledger

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/export"
)

// EventGap is a record that the ledger writes by itself where the feed may have removed events before it read them.
const EventGap event.Type = "ledger.gap"

// Config configures [Open].
type Config struct {
	Storage Storage     // required; Open's caller closes it, after the Ledger
	Signer  note.Signer // required: of checkpoints. Its name is the log's origin, such as "auth.example.com/audit"; never changed
	// Vault keeps what is personal erasable. nil: events stand in the log in clear. A log can have both sorts of records.
	Vault *Vault
	// Interval is how long an event waits for a checkpoint that covers it, at most. Zero: 1 minute; at least 1 second.
	Interval time.Duration
	// Poll is how often the feed is read. Zero: 500 ms.
	Poll time.Duration
	// Watch is how often the log and, where Follow was called, the feed are read again as by Check and CheckSource, the first time
	// after one such interval; Status tells what was found. Zero: 1 hour; negative: never.
	Watch time.Duration
	// Witnesses are asked to co-sign each checkpoint; what they answer within ten seconds goes out with it. A checkpoint with fewer
	// co-signatures than Quorum is not published, and tried again at the next interval. Sealing does not wait for them.
	Witnesses []Witness
	Quorum    int
	Publish   []Publisher
	Logger    *slog.Logger     // nil: silent
	Now       func() time.Time // nil: time.Now
}

const (
	defaultInterval = time.Minute
	minInterval     = time.Second
	defaultPoll     = 500 * time.Millisecond
	defaultWatch    = time.Hour
	batchEvents     = 1000
	batchPages      = 8
	// recentIDs are found without reading a file. Events of a process whose clock is behind have older IDs than others that
	// came before: so many are some five seconds at the rate of a busy fleet, and 7 MB.
	recentIDs    = 1 << 16
	gapAfter     = time.Hour // apitoken.Config.KeepEvents is no shorter
	keepRead     = 10 * time.Minute
	closeTimeout = 10 * time.Second
)

// Ledger is the sealed log of one service. It is safe for concurrent use.
type Ledger struct {
	cfg Config
	log *slog.Logger

	turn chan struct{} // holds whoever appends, signs or drops

	// Of whoever has the turn.
	tree   frontier
	place  export.Place
	read   time.Time // when the feed was last read to its end
	recent map[string]int64
	order  []string // of recent, a ring
	floor  string   // what has a greater ID is in recent, or not in the log
	oldest int
	signed Checkpoint // the newest
	kept   time.Time  // the read that is durable
	again  bool       // the feed is read from its beginning, after a gap
	since  time.Time  // when the oldest record without a checkpoint came; zero: there is none

	mu    sync.Mutex // guards moved, src and status
	moved chan struct{}
	src   Source
	stat  Status

	outlets []*outlet
	asking  chan struct{}   // holds whoever asks the witnesses
	busy    []chan struct{} // of each witness: holds the one call that may be under way
	fresh   chan struct{}   // there is a checkpoint that they have not seen
	kick    chan struct{}
	ctx     context.Context
	stop    context.CancelFunc
	wg      sync.WaitGroup
	once    sync.Once
}

// Source is an event feed; [apitoken.Service] is one.
type Source = export.Source

// Status is where a ledger stands, for health checks and metrics.
type Status struct {
	First   int64     // the oldest record that is kept
	Size    int64     // records
	Signed  int64     // of them under a checkpoint
	Read    time.Time // when the feed was last read to its end
	Waiting time.Time // since when a record waits for a checkpoint; zero: none does
	Err     error     // of the last attempt to read, append, sign or gather co-signatures; nil: it went well

	Checked time.Time // when the last watch that could be finished began; zero: none did yet
	Found   error     // what it found, mostly a [TamperError]; nil: nothing

	Publishers []PublisherStatus // in the order of Config.Publish
}

// PublisherStatus is where a publisher stands.
type PublisherStatus struct {
	Size int64 // of the last checkpoint that it took
	Err  error // of its last call
}

// placeTime is how Batch.Place begins: with the time up to which the feed was read.
const placeTime = time.RFC3339Nano

// Open opens the log in c.Storage and goes on where it ended. It fails with a [TamperError] when the storage is behind its own last
// checkpoint, or not what that one signed.
func Open(c Config) (*Ledger, error) {
	switch {
	case c.Storage == nil:
		return nil, errors.New("ledger: Config.Storage is required; OpenDir makes one in a directory")
	case c.Signer == nil:
		return nil, errors.New("ledger: Config.Signer is required: an unsigned log proves nothing")
	case c.Interval < 0 || c.Interval > 0 && c.Interval < minInterval:
		return nil, fmt.Errorf("ledger: Config.Interval is under %s", minInterval)
	case c.Poll < 0:
		return nil, errors.New("ledger: Config.Poll must not be negative")
	case slices.ContainsFunc(c.Witnesses, func(w Witness) bool { return w.Key == nil || w.Client == nil }):
		return nil, errors.New("ledger: each of Config.Witnesses needs a Key and a Client")
	case sameKey(c.Witnesses):
		return nil, errors.New("ledger: two of Config.Witnesses have one key")
	case c.Quorum < 0 || c.Quorum > len(c.Witnesses):
		return nil, fmt.Errorf("ledger: Config.Quorum is %d of %d witnesses", c.Quorum, len(c.Witnesses))
	}
	if c.Interval == 0 {
		c.Interval = defaultInterval
	}
	if c.Poll == 0 {
		c.Poll = defaultPoll
	}
	if c.Watch == 0 {
		c.Watch = defaultWatch
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	l := &Ledger{cfg: c, log: c.Logger, turn: make(chan struct{}, 1), asking: make(chan struct{}, 1), fresh: make(chan struct{}, 1), recent: map[string]int64{}, moved: make(chan struct{}), kick: make(chan struct{}, 1)}
	for range c.Witnesses {
		l.busy = append(l.busy, make(chan struct{}, 1))
	}
	l.ctx, l.stop = context.WithCancel(context.Background())
	if err := l.load(); err != nil {
		l.stop()
		return nil, err
	}
	for i, p := range c.Publish {
		if p == nil {
			l.stop()
			return nil, fmt.Errorf("ledger: Config.Publish[%d] is nil", i)
		}
		o := newOutlet(p, strconv.Itoa(i), l.log)
		l.outlets = append(l.outlets, o)
		l.goRun(o.run)
	}
	if err := l.offerLast(); err != nil {
		l.stop()
		l.wg.Wait()
		return nil, err
	}
	l.goRun(l.run)
	if c.Watch > 0 {
		l.goRun(l.watch)
	}
	if len(c.Witnesses) > 0 {
		l.goRun(l.askWitnesses)
	}
	return l, nil
}

// load reads where the storage stands, and holds it against the newest checkpoint.
func (l *Ledger) load() error {
	st := l.cfg.Storage.State()
	var err error
	if l.tree, err = readFrontier(st.Size, l.cfg.Storage); err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	if l.tree.root() != st.Root {
		return tampered(ErrAltered, "the stored hashes do not give the stored root")
	}
	if err := l.readPlace(st.Place); err != nil {
		return err
	}
	l.floor = st.MaxID
	if l.signed, err = l.newest(st.Size); err != nil {
		return err
	}
	switch {
	case l.signed.Origin == "":
	case l.signed.Size > st.Size:
		return &TamperError{Kind: ErrRolledBack, From: st.Size, To: l.signed.Size, Detail: "a checkpoint that was signed here covers them, and the log no longer has them"}
	default:
		f, err := readFrontier(l.signed.Size, l.cfg.Storage)
		if err != nil {
			return fmt.Errorf("ledger: %w", err)
		}
		if f.root() != l.signed.Root {
			return &TamperError{Kind: ErrAltered, From: 0, To: l.signed.Size, Detail: "they do not give the root of the last checkpoint"}
		}
	}
	if st.Size > l.signed.Size {
		l.since = l.cfg.Now()
	}
	l.stat = Status{First: st.First, Size: st.Size, Signed: l.signed.Size, Read: l.read, Waiting: l.since}
	return nil
}

// newest is the kept checkpoint of the greatest size, or any that covers more than size records; the zero one if there is none.
// A log that seals every minute has half a million of them a year, so that it bisects.
func (l *Ledger) newest(size int64) (newest Checkpoint, err error) {
	found := func(from int64) bool {
		var list [][]byte
		var c Checkpoint
		if list, err = l.cfg.Storage.Checkpoints(l.ctx, from, 1); err != nil || len(list) == 0 {
			return false
		}
		if c, err = l.parseOwn(list[0]); err == nil && c.Size < from {
			err = tampered(ErrSignature, "a stored checkpoint is of %d records, and kept as one of %d or more", c.Size, from)
		}
		newest = c
		return err == nil
	}
	if found(size+1) || err != nil {
		return newest, err
	}
	for lo, hi := int64(0), size; lo <= hi && err == nil; {
		if mid := lo + (hi-lo)/2; found(mid) {
			lo = newest.Size + 1
		} else {
			hi = mid - 1
		}
	}
	return newest, err
}

func (l *Ledger) parseOwn(signed []byte) (Checkpoint, error) {
	// Its signature was made here; what counts is that the storage still agrees.
	n, err := note.Open(signed, nil)
	var unverified *note.UnverifiedNoteError
	if errors.As(err, &unverified) {
		n, err = unverified.Note, nil
	}
	if err != nil {
		return Checkpoint{}, tampered(ErrSignature, "a stored checkpoint: %v", err)
	}
	c, err := parseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, tampered(ErrSignature, "a stored checkpoint: %v", err)
	}
	if c.Origin != l.cfg.Signer.Name() {
		return Checkpoint{}, fmt.Errorf("ledger: the storage holds the log %.64q, and Config.Signer is of %.64q", c.Origin, l.cfg.Signer.Name())
	}
	return c, nil
}

// Batch.Place is the time up to which the feed was read, a space, and the place.
func (l *Ledger) readPlace(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	var at, place string
	for i, c := range b {
		if c == ' ' {
			at, place = string(b[:i]), string(b[i+1:])
			break
		}
	}
	var err error
	if l.read, err = time.Parse(placeTime, at); err == nil {
		l.kept = l.read
		err = l.place.UnmarshalText([]byte(place))
	}
	if err != nil {
		return fmt.Errorf("ledger: the stored place in the feed does not read: %w", err)
	}
	return nil
}

func (l *Ledger) writePlace(p export.Place, read time.Time) ([]byte, error) {
	text, err := p.MarshalText()
	return append(read.UTC().AppendFormat(nil, placeTime+" "), text...), err
}

// offerLast gives the newest checkpoint to every publisher once more: whether they got it is not known.
func (l *Ledger) offerLast() error {
	if l.signed.Origin == "" {
		return nil
	}
	list, err := l.cfg.Storage.Checkpoints(l.ctx, l.signed.Size, 1)
	if err != nil || len(list) == 0 {
		return err
	}
	if len(l.cfg.Witnesses) == 0 || l.cosigned(list[0]) {
		l.offer(l.signed.Size, list[0])
	} else {
		l.fresh <- struct{}{}
	}
	return nil
}

func (l *Ledger) goRun(f func(context.Context)) {
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		f(l.ctx)
	}()
}

// Follow begins to read the events of src, from where the log ended. A Ledger follows one feed, for all its life.
func (l *Ledger) Follow(src Source) error {
	if src == nil {
		return errors.New("ledger: Follow needs a source")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.src != nil {
		return errors.New("ledger: it follows a feed already")
	}
	l.src = src
	l.wake()
	return nil
}

func (l *Ledger) source() Source {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.src
}

func (l *Ledger) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// take waits for the turn.
func (l *Ledger) take(ctx context.Context) error {
	select {
	case l.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *Ledger) give() { <-l.turn }

func (l *Ledger) run(ctx context.Context) {
	wait := l.cfg.Poll
	for {
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-l.kick:
		case <-t.C:
		}
		t.Stop()
		if wait = l.cfg.Poll; l.round(ctx) != nil {
			wait = max(wait, time.Second)
		}
	}
}

// watch looks for edits of the log and of the feed that nobody else would find, since Check and CheckSource need a caller.
func (l *Ledger) watch(ctx context.Context) {
	t := time.NewTicker(l.cfg.Watch)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			l.watchOnce(ctx)
		}
	}
}

func (l *Ledger) watchOnce(ctx context.Context) {
	began := l.cfg.Now()
	err := l.Check(ctx)
	// While the ledger is behind, events that the feed begins with may not have been read yet.
	if src := l.source(); err == nil && src != nil {
		if l.take(ctx) != nil {
			return
		}
		err = l.drain(ctx)
		if err == nil {
			_, _, err = l.sign(ctx)
		}
		l.note(ctx, err)
		l.give()
		if err == nil {
			err = l.CheckSource(ctx, src)
		}
	}
	if ctx.Err() != nil {
		return
	}
	if found := (*TamperError)(nil); err != nil && !errors.As(err, &found) {
		l.log.Warn("ledger: the log could not be checked", "error", err)
		return
	}
	if err != nil {
		l.log.Error("ledger: the log and its source disagree, or the log was changed", "error", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stat.Checked, l.stat.Found = began, err
}

// round reads the feed to its end and signs when it is time. Between two pages others get the turn.
func (l *Ledger) round(ctx context.Context) error {
	for more := true; more; {
		if l.take(ctx) != nil {
			return nil
		}
		var err error
		more, err = l.drainPage(ctx)
		if !l.since.IsZero() && l.cfg.Now().Sub(l.since) >= l.cfg.Interval {
			if _, _, serr := l.sign(ctx); serr != nil {
				err = errors.Join(err, serr)
			}
		}
		l.note(ctx, err)
		l.give()
		if err != nil {
			return err
		}
	}
	return nil
}

// note publishes where the ledger stands. The caller has the turn.
func (l *Ledger) note(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil {
		l.log.Warn("ledger: events wait to be sealed", "error", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() == nil {
		l.stat.Err = err
	}
	l.stat.Size, l.stat.Signed, l.stat.Read, l.stat.Waiting = l.tree.size, l.signed.Size, l.read, l.since
}

// Status tells where the ledger stands.
func (l *Ledger) Status() Status {
	l.mu.Lock()
	s := l.stat
	l.mu.Unlock()
	for _, o := range l.outlets {
		o.mu.Lock()
		s.Publishers = append(s.Publishers, PublisherStatus{o.done, o.err})
		o.mu.Unlock()
	}
	return s
}

// drain appends what the feed has. The caller has the turn.
func (l *Ledger) drain(ctx context.Context) error {
	for more := true; more; {
		var err error
		if more, err = l.drainPage(ctx); err != nil {
			return err
		}
	}
	return nil
}

// drainPage appends what the feed has, up to batchPages pages at once, and tells whether there may be more.
func (l *Ledger) drainPage(ctx context.Context) (more bool, err error) {
	src := l.source()
	if src == nil {
		return false, nil
	}
	asked := l.cfg.Now()
	var list []apitoken.Event
	place, read := l.place, l.read
	for range batchPages { // of a backlog: the syncs are what an append costs
		page, next, err := export.Next(ctx, src, apitoken.EventQuery{}, place, batchEvents)
		if err != nil && len(list) > 0 {
			break // it comes again, after what is at hand
		}
		if errors.Is(err, export.ErrTrimmed) {
			return true, l.gap(ctx, asked)
		}
		if err != nil {
			return false, err
		}
		list, place = append(list, page...), next
		if len(page) < batchEvents-1 { // a page with a place that ends in a known event has one less
			read = asked
			break
		}
	}
	if len(list) == 0 {
		l.read, l.again = asked, false
		if asked.Sub(l.kept) < keepRead {
			return false, nil
		}
		return false, l.append(ctx, nil, place, asked)
	}
	return true, l.append(ctx, list, place, read)
}

// gap goes on from the oldest event that the feed still has. Where it was read to its end less than an hour ago nothing was
// missed: events stay at least that long. Else a record says so.
func (l *Ledger) gap(ctx context.Context, now time.Time) error {
	var list []apitoken.Event
	if since := now.Sub(l.read); since >= gapAfter || since < 0 {
		l.log.Error("ledger: the feed may have removed events before they were sealed", "read", l.read)
		// Its ID sorts before those of events, which are times.
		e := apitoken.Event{ID: "-gap-" + strconv.FormatInt(l.tree.size, 10), Time: now, Type: EventGap, Reason: "events may have been removed before they were sealed"}
		if !l.read.IsZero() {
			e.Extra = map[string]string{"read": l.read.UTC().Format(time.RFC3339)}
		}
		list = append(list, e)
	}
	l.again = true
	return l.append(ctx, list, export.Place{}, l.read)
}

// append seals events that are not in the log yet, and moves the place. The caller has the turn.
func (l *Ledger) append(ctx context.Context, list []apitoken.Event, next export.Place, read time.Time) error {
	b := Batch{Lines: make([][]byte, 0, len(list)), IDs: make([]string, 0, len(list)), Hashes: make([]tlog.Hash, 0, 2*len(list))}
	tree := l.tree.clone()
	inBatch := make(map[string]bool, len(list))
	dropped := ""
	if l.again {
		dropped = l.cfg.Storage.State().Dropped
	}
	for _, e := range list {
		if inBatch[e.ID] {
			continue
		}
		pos, err := l.find(ctx, e.ID)
		if err != nil {
			return err
		}
		if pos >= 0 || e.ID <= dropped {
			continue // the feed gave it again
		}
		leaf := Leaf{Pos: tree.size, Event: e}
		if l.cfg.Vault != nil {
			if err := l.cfg.Vault.hide(&leaf); err != nil {
				return err
			}
		}
		line, err := leaf.AppendText(make([]byte, 0, 512))
		if err != nil {
			return err
		}
		inBatch[e.ID] = true
		b.Lines, b.IDs = append(b.Lines, line), append(b.IDs, e.ID)
		b.Hashes = tree.push(tlog.RecordHash(line), b.Hashes)
	}
	var err error
	if b.Place, err = l.writePlace(next, read); err != nil {
		return err
	}
	if l.cfg.Vault != nil {
		if err := l.cfg.Vault.sync(); err != nil {
			return err
		}
	}
	b.Root = tree.root()
	// What was begun is ended, also when the caller has gone: an append that was cut short would have to be found out about.
	err = l.cfg.Storage.Append(context.WithoutCancel(ctx), b)
	if err != nil {
		// The outcome is what the storage says; an append that was committed all the same is not repeated.
		if st := l.cfg.Storage.State(); st.Size != tree.size || st.Root != b.Root || string(st.Place) != string(b.Place) {
			return err
		}
	}
	if len(b.Lines) > 0 && l.since.IsZero() {
		l.since = l.cfg.Now()
	}
	for i, id := range b.IDs {
		l.remember(id, l.tree.size+int64(i))
	}
	l.tree, l.place, l.read, l.kept = tree, next, read, read
	l.mu.Lock()
	l.stat.Size = tree.size
	close(l.moved)
	l.moved = make(chan struct{})
	l.mu.Unlock()
	return nil
}

func (l *Ledger) remember(id string, pos int64) {
	if len(l.order) < recentIDs {
		l.order = append(l.order, id)
	} else {
		l.floor = max(l.floor, l.order[l.oldest])
		delete(l.recent, l.order[l.oldest])
		l.order[l.oldest] = id
		l.oldest = (l.oldest + 1) % recentIDs
	}
	l.recent[id] = pos
}

// find tells where an event is, -1 if it is not in the log. The caller has the turn.
func (l *Ledger) find(ctx context.Context, id string) (int64, error) {
	if pos, ok := l.recent[id]; ok {
		return pos, nil
	}
	if id > l.floor {
		return -1, nil
	}
	return l.cfg.Storage.Find(ctx, id)
}

// Audit makes a Ledger an [apitoken.Auditor]. As a sink of the service that it follows it answers when the event is in the log, so
// that the sink's MaxLag makes the log a condition of issuing, and KeepEvents removes nothing that is not in it. Without
// Follow it appends e itself, one sync for each event: for feeds that are no Source.
func (l *Ledger) Audit(ctx context.Context, e apitoken.Event) error {
	for {
		l.mu.Lock()
		moved, following := l.moved, l.src != nil
		l.mu.Unlock()
		if err := l.take(ctx); err != nil {
			return err
		}
		pos, err := l.find(ctx, e.ID)
		if err == nil && pos < 0 && !following {
			err = l.append(ctx, []apitoken.Event{e}, l.place, l.cfg.Now())
			pos = l.tree.size - 1
			l.note(ctx, err)
		}
		l.give()
		if err != nil || pos >= 0 || following && e.ID <= l.cfg.Storage.State().Dropped {
			return err // what was archived and dropped was in the log
		}
		l.wake()
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-l.ctx.Done():
			return errors.New("ledger: closed")
		}
	}
}

// Seal reads the feed to its end, signs a checkpoint over it, gathers co-signatures, and returns it; publishers get it as well. With nothing
// new it is the last one.
func (l *Ledger) Seal(ctx context.Context) ([]byte, error) {
	if err := l.take(ctx); err != nil {
		return nil, err
	}
	var c Checkpoint
	var signed []byte
	err := l.drain(ctx)
	if err == nil {
		c, signed, err = l.sign(ctx)
	}
	l.note(ctx, err)
	l.give()
	if err != nil || len(l.cfg.Witnesses) == 0 {
		return signed, err
	}
	return l.cosign(ctx, c, signed)
}

// sign makes a checkpoint of the log as it is, and gives it to the publishers, or to those who ask the witnesses. The caller has the
// turn.
func (l *Ledger) sign(ctx context.Context) (Checkpoint, []byte, error) {
	if l.signed.Origin != "" && l.signed.Size == l.tree.size {
		list, err := l.cfg.Storage.Checkpoints(ctx, l.tree.size, 1)
		if err != nil {
			return l.signed, nil, err
		}
		if len(list) == 1 {
			l.since = time.Time{}
			return l.signed, list[0], nil
		}
	}
	c := Checkpoint{l.cfg.Signer.Name(), l.tree.size, l.tree.root()}
	signed, err := note.Sign(&note.Note{Text: c.Text()}, l.cfg.Signer)
	if err != nil {
		return c, nil, fmt.Errorf("ledger: sign: %w", err)
	}
	// What goes to anybody is kept first: after a crash this log must not be a shorter one.
	if err := l.cfg.Storage.PutCheckpoint(ctx, c.Size, signed); err != nil {
		return c, nil, err
	}
	l.signed, l.since = c, time.Time{}
	if len(l.cfg.Witnesses) == 0 {
		l.offer(c.Size, signed)
	} else {
		select {
		case l.fresh <- struct{}{}:
		default:
		}
	}
	return c, signed, nil
}

func (l *Ledger) offer(size int64, signed []byte) {
	for _, o := range l.outlets {
		o.offer(size, signed)
	}
}

// ProveInclusion proves to whoever has the newest checkpoint, which it returns too, that the event with an ID is in the log.
// apitoken.ErrNotFound: it is not, or under no checkpoint yet, or was dropped.
func (l *Ledger) ProveInclusion(ctx context.Context, eventID string) (InclusionProof, []byte, error) {
	signed, c, err := l.last(ctx)
	if err != nil {
		return InclusionProof{}, nil, err
	}
	pos, err := l.cfg.Storage.Find(ctx, eventID)
	if err != nil {
		return InclusionProof{}, nil, err
	}
	if pos < 0 || pos >= c.Size {
		return InclusionProof{}, nil, &apitoken.Error{Code: apitoken.ErrNotFound, Detail: "no event with this ID is under a checkpoint of the ledger"}
	}
	p, err := l.proveAt(ctx, pos, c.Size)
	return p, signed, err
}

// ProveInclusionAt proves that a record is in the log of a checkpoint of some size.
func (l *Ledger) ProveInclusionAt(ctx context.Context, pos, size int64) (InclusionProof, error) {
	_, c, err := l.last(ctx)
	if err != nil {
		return InclusionProof{}, err
	}
	if pos < 0 || pos >= size || size > c.Size {
		return InclusionProof{}, &apitoken.Error{Code: apitoken.ErrNotFound, Detail: fmt.Sprintf("no record %d under a checkpoint of %d", pos, size)}
	}
	return l.proveAt(ctx, pos, size)
}

func (l *Ledger) proveAt(ctx context.Context, pos, size int64) (InclusionProof, error) {
	lines, err := l.cfg.Storage.Lines(ctx, pos, 1)
	if err != nil {
		return InclusionProof{}, err
	}
	hashes, err := tlog.ProveRecord(size, pos, l.cfg.Storage)
	if err != nil {
		return InclusionProof{}, fmt.Errorf("ledger: %w", err)
	}
	return InclusionProof{Pos: pos, Size: size, Line: string(lines[0]), Hashes: hashes}, nil
}

// ProveConsistency proves that the log of a checkpoint of newSize records begins with that of one of oldSize. It works for dropped
// records as well.
func (l *Ledger) ProveConsistency(ctx context.Context, oldSize, newSize int64) (ConsistencyProof, error) {
	if err := ctx.Err(); err != nil {
		return ConsistencyProof{}, err
	}
	p := ConsistencyProof{Old: oldSize, New: newSize}
	if size := l.cfg.Storage.State().Size; oldSize < 0 || oldSize > newSize || newSize > size {
		return p, &apitoken.Error{Code: apitoken.ErrNotFound, Detail: fmt.Sprintf("no logs of %d and %d records; there are %d", oldSize, newSize, size)}
	}
	if oldSize == 0 {
		return p, nil
	}
	var err error
	if p.Hashes, err = tlog.ProveTree(newSize, oldSize, l.cfg.Storage); err != nil {
		return p, fmt.Errorf("ledger: %w", err)
	}
	return p, nil
}

// Checkpoint returns the newest signed checkpoint. apitoken.ErrNotFound: there is none yet.
func (l *Ledger) Checkpoint(ctx context.Context) ([]byte, error) {
	signed, _, err := l.last(ctx)
	return signed, err
}

// Checkpoints returns up to max signed checkpoints (zero: 1000) of sizes from minSize on, the smallest first.
func (l *Ledger) Checkpoints(ctx context.Context, minSize int64, max int) ([][]byte, error) {
	if max <= 0 {
		max = 1000
	}
	return l.cfg.Storage.Checkpoints(ctx, minSize, max)
}

func (l *Ledger) last(ctx context.Context) ([]byte, Checkpoint, error) {
	l.mu.Lock()
	size := l.stat.Signed
	l.mu.Unlock()
	list, err := l.cfg.Storage.Checkpoints(ctx, size, 1)
	if err != nil {
		return nil, Checkpoint{}, err
	}
	if len(list) == 0 {
		return nil, Checkpoint{}, &apitoken.Error{Code: apitoken.ErrNotFound, Detail: "the ledger has no checkpoint yet"}
	}
	c, err := l.parseOwn(list[0])
	return list[0], c, err
}

// Leaves calls fn with the records from position from on, up to to (negative: to the newest checkpoint), in order.
func (l *Ledger) Leaves(ctx context.Context, from, to int64, fn func(Leaf) error) error {
	return l.lines(ctx, from, to, func(line []byte) error {
		leaf, err := ParseLeaf(line)
		if err != nil {
			return fmt.Errorf("ledger: %w", err)
		}
		return fn(leaf)
	})
}

func (l *Ledger) lines(ctx context.Context, from, to int64, fn func([]byte) error) error {
	if to < 0 {
		l.mu.Lock()
		to = l.stat.Signed
		l.mu.Unlock()
	}
	for from < to {
		list, err := l.cfg.Storage.Lines(ctx, from, int(min(to-from, 4096)))
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return fmt.Errorf("ledger: there are only %d records", from)
		}
		for _, line := range list {
			if err := fn(line); err != nil {
				return err
			}
		}
		from += int64(len(list))
	}
	return nil
}

// Export writes the records from position from on, up to to (negative: to the newest checkpoint), for [Verify]. What begins later than
// the log does has a first line of its own, from which it can be verified alone.
func (l *Ledger) Export(ctx context.Context, w io.Writer, from, to int64) error {
	if from < 0 {
		return errors.New("ledger: a position is not negative")
	}
	out := bufio.NewWriterSize(w, 64<<10)
	if from > 0 {
		f, err := readFrontier(from, l.cfg.Storage)
		if err != nil {
			return err
		}
		head, err := f.head(l.cfg.Signer.Name())
		if err != nil {
			return err
		}
		if _, err := out.Write(head); err != nil {
			return err
		}
	}
	err := l.lines(ctx, from, to, func(line []byte) error {
		if _, err := out.Write(line); err != nil {
			return err
		}
		return out.WriteByte('\n')
	})
	if err != nil {
		return err
	}
	return out.Flush()
}

// Archive exports the records before a position to w, and drops them when sync, which makes what was written durable, answers nil. Proofs go
// on working but for inclusion of what was dropped, whose lines only the archive has. before must be the size
// of a checkpoint, which verifies the archive: Checkpoints lists them.
func (l *Ledger) Archive(ctx context.Context, w io.Writer, before int64, sync func() error) error {
	if sync == nil {
		return errors.New("ledger: Archive needs to know that the archive is durable")
	}
	list, err := l.cfg.Storage.Checkpoints(ctx, before, 1)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return fmt.Errorf("ledger: no checkpoint of %d records", before)
	}
	if c, err := l.parseOwn(list[0]); err != nil || c.Size != before {
		return errors.Join(err, fmt.Errorf("ledger: no checkpoint of %d records", before))
	}
	if err := l.Export(ctx, w, l.cfg.Storage.State().First, before); err != nil {
		return err
	}
	if err := sync(); err != nil {
		return fmt.Errorf("ledger: the archive is not durable, nothing is dropped: %w", err)
	}
	if err := l.take(ctx); err != nil {
		return err
	}
	defer l.give()
	if err := l.cfg.Storage.Drop(ctx, before); err != nil {
		return err
	}
	l.mu.Lock()
	l.stat.First = l.cfg.Storage.State().First
	l.mu.Unlock()
	return nil
}

// Close reads the feed to its end once more, signs a last checkpoint, and waits for witnesses and publishers, all for at most ten seconds. Close
// it after the Service, so that what that one wrote last is in it, and before Storage and Vault.
func (l *Ledger) Close() error {
	var err error
	l.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if err = l.take(ctx); err == nil {
			var c Checkpoint
			var signed []byte
			if err = l.drain(ctx); err == nil && !l.since.IsZero() {
				c, signed, err = l.sign(ctx)
			}
			if err == nil && l.source() != nil {
				err = l.append(ctx, nil, l.place, l.read) // when it was read last
			}
			l.note(ctx, err)
			l.give()
			if err == nil && signed != nil && len(l.cfg.Witnesses) > 0 {
				_, err = l.cosign(ctx, c, signed)
			}
		}
		l.stop()
		l.wg.Wait()
		for _, o := range l.outlets {
			o.last(ctx)
		}
	})
	return err
}
