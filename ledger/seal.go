// How the log grows: events of the feed become leaves, and a checkpoint over all leaves is signed at an interval, and by Seal.

package ledger

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/export"
)

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
