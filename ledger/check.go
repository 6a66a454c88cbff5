package ledger

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/export"
)

// Check reads every kept record again and holds it against the tree and against every kept checkpoint: what [Verify] does to an
// export, to the storage itself. About a second for a million records. A [TamperError] says what it found.
func (l *Ledger) Check(ctx context.Context) error {
	st := l.cfg.Storage.State()
	tree, err := readFrontier(st.First, l.cfg.Storage)
	if err != nil {
		return tampered(ErrAltered, "the hashes of dropped records: %v", err)
	}
	marks := markReader{l: l, from: st.First}
	proved := st.First
	pass := func() error {
		for {
			c, ok, err := marks.peek(ctx)
			if err != nil || !ok || c.Size > tree.size {
				return err
			}
			if root := tree.root(); root != c.Root {
				return &TamperError{Kind: ErrAltered, From: proved, To: tree.size, Detail: fmt.Sprintf("they do not give the root of the checkpoint of %d records", tree.size)}
			}
			proved = tree.size
			marks.list = marks.list[1:]
		}
	}
	if err := pass(); err != nil {
		return err
	}
	// The stored hashes are held against those of the lines, some hundreds at once.
	var hashes []tlog.Hash
	next := tlog.StoredHashCount(st.First) // the index of hashes[0]
	flush := func() error {
		at := make([]int64, len(hashes))
		for i := range at {
			at[i] = next + int64(i)
		}
		kept, err := l.cfg.Storage.ReadHashes(at)
		for i := range kept {
			if err == nil && kept[i] != hashes[i] {
				level, n := tlog.SplitStoredHashIndex(at[i])
				return &TamperError{Kind: ErrAltered, From: n << level, To: (n + 1) << level, Detail: "they are not what was committed"}
			}
		}
		next, hashes = next+int64(len(hashes)), hashes[:0]
		return err
	}
	err = l.lines(ctx, st.First, st.Size, func(line []byte) error {
		pos := tree.size
		leaf, err := readLeaf(string(line))
		if err == nil && leaf.Pos != pos {
			err = fmt.Errorf("it says that it is record %d", leaf.Pos)
		}
		if err != nil {
			err = &TamperError{Kind: ErrAltered, From: pos, To: pos + 1, Detail: err.Error()}
			return cmp.Or(flush(), err) // what lies before comes first
		}
		if hashes = tree.push(tlog.RecordHash(line), hashes); len(hashes) >= 512 {
			if err := flush(); err != nil {
				return err
			}
		}
		if err := pass(); err != nil {
			return cmp.Or(flush(), err) // which tells the record
		}
		return nil
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return err
	}
	if tree.root() != st.Root {
		return &TamperError{Kind: ErrAltered, From: proved, To: st.Size, Detail: "they do not give the root that was committed"}
	}
	return nil
}

// CheckSource reads the feed again from its beginning and holds each event that it still has against the log: so an edit of the
// service's own store is found as well. Events that are not in the log yet are passed over, and what was erased is not
// compared. What is missing at the feed's beginning looks like what apitoken.Config.KeepEvents removed: the log still has it.
// A [TamperError] names the event.
func (l *Ledger) CheckSource(ctx context.Context, src Source) error {
	_, c, err := l.last(ctx)
	if err != nil {
		return err
	}
	if c.Size == 0 {
		return nil
	}
	pos := int64(-1)
	st := l.cfg.Storage.State()
	var place export.Place
	var lines [][]byte // from pos on
	for {
		list, next, err := export.Next(ctx, src, apitoken.EventQuery{}, place, batchEvents)
		if err != nil {
			return err
		}
		for _, e := range list {
			if pos < 0 { // the feed may begin later than the log
				at, err := l.cfg.Storage.Find(ctx, e.ID)
				if err != nil {
					return err
				}
				if at < 0 {
					if e.ID <= st.Dropped {
						continue // dropped here, and still in the store
					}
					return &TamperError{Kind: ErrAltered, Detail: fmt.Sprintf("event %q is in the store and not in the log", e.ID)}
				}
				pos = at
			}
			for own := true; own; pos, lines = pos+1, lines[1:] {
				if pos >= c.Size {
					return nil
				}
				if len(lines) == 0 {
					if lines, err = l.cfg.Storage.Lines(ctx, pos, int(min(c.Size-pos, 4096))); err != nil {
						return err
					}
				}
				// A record of the ledger's own, of which the feed knows nothing, may lie between.
				if own, err = l.same(e, lines[0]); err != nil {
					return &TamperError{Kind: ErrAltered, From: pos, To: pos + 1, Detail: err.Error()}
				}
			}
		}
		if len(list) == 0 {
			for ; pos >= 0 && pos < c.Size; pos, lines = pos+1, lines[1:] {
				if len(lines) == 0 {
					if lines, err = l.cfg.Storage.Lines(ctx, pos, int(min(c.Size-pos, 4096))); err != nil {
						return err
					}
				}
				leaf, err := readLeaf(string(lines[0]))
				if err != nil || leaf.Event.Type != EventGap {
					return &TamperError{Kind: ErrTruncated, From: pos, To: c.Size, Detail: "the store does not have them"}
				}
			}
			return nil
		}
		place = next
	}
}

// same reports whether a record is one that the ledger wrote by itself; an error says that it is not of event e.
func (l *Ledger) same(e apitoken.Event, line []byte) (own bool, err error) {
	leaf, err := readLeaf(string(line))
	if err != nil {
		return false, err
	}
	if leaf.Event.Type == EventGap {
		return true, nil
	}
	got, erased := leaf.Event, false
	if leaf.Sealed != nil {
		if l.cfg.Vault == nil {
			return false, errors.New("it is sealed, and the ledger was opened without its vault")
		}
		if got, erased, err = l.cfg.Vault.Reveal(leaf); err != nil {
			return false, err
		}
	}
	if erased { // what is left of both
		got, e = impersonal(got), impersonal(e)
	}
	a, err := (&Leaf{Event: got}).AppendText(nil)
	if err != nil {
		return false, err
	}
	b, err := (&Leaf{Event: e}).AppendText(nil)
	if err != nil {
		return false, err
	}
	if !bytes.Equal(a, b) {
		return false, fmt.Errorf("in the store it is event %q, and not what was sealed", e.ID)
	}
	return false, nil
}

// impersonal is e without what may be sealed.
func impersonal(e apitoken.Event) apitoken.Event {
	return apitoken.Event{ID: e.ID, Time: e.Time, Type: e.Type, OK: e.OK, Client: e.Client, TokenID: e.TokenID, Grant: e.Grant, Scopes: e.Scopes, Count: e.Count}
}

// markReader goes through the kept checkpoints, the smallest first.
type markReader struct {
	l    *Ledger
	from int64
	list []Checkpoint
}

func (m *markReader) peek(ctx context.Context) (Checkpoint, bool, error) {
	if len(m.list) == 0 {
		page, err := m.l.cfg.Storage.Checkpoints(ctx, m.from, 64)
		if err != nil || len(page) == 0 {
			return Checkpoint{}, false, err
		}
		for _, signed := range page {
			c, err := m.l.parseOwn(signed)
			if err != nil {
				return Checkpoint{}, false, err
			}
			m.list = append(m.list, c)
			m.from = c.Size + 1
		}
	}
	return m.list[0], true, nil
}
