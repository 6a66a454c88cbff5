// What readers ask of the log: proofs, checkpoints, leaves, and an export or archive of them.

package ledger

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/apitoken-go/apitoken"
)

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
