package ledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

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
