// A namespace as it is opened: its history, and whether the store has lost writes.

package sqltables

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/apitoken-go/apitoken/store"
)

// lostError says that acknowledged writes of a namespace may have been lost: it gets another History before anything is
// answered from it.
type lostError struct{ s *Store }

func (l lostError) Error() string { return l.s.Name + ": another history" }

// lost reports whether a row is of before a position that this process had seen when it asked.
func lost(floor store.Position, sp *space) bool {
	return uint64(sp.history) == floor.History && sp.head < floor.N
}

// last is the last position that this process has seen.
func (s *Store) last() store.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

// note keeps a position that was read. Answers may come in another order than they were read in.
func (s *Store) note(p store.Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.History != s.seen.History || p.N > s.seen.N {
		s.seen = p
	}
}

// open makes the namespace's row at its first use in this process, and another History where it is due.
func (s *Store) open(ctx context.Context) error {
	if s.last() != (store.Position{}) {
		return nil
	}
	select {
	case s.opening <- struct{}{}:
		defer func() { <-s.opening }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.last() != (store.Position{}) {
		return nil
	}
	if !utf8.ValidString(s.ns) || strings.IndexByte(s.ns, 0) >= 0 || len(s.ns) > 255 {
		return fmt.Errorf("%w: a namespace is at most 255 bytes of UTF-8 without NUL", store.ErrInvalid)
	}
	return s.adopt(ctx)
}

// adopt makes the row if there is none, and gives it another History if acknowledged writes may be missing. State and
// events continue behind whatever was written before the loss, because the clock has.
func (s *Store) adopt(ctx context.Context) error {
	var at store.Position
	err := s.again(ctx, func() error {
		floor := s.last()
		return s.transact(ctx, s.slots, []string{s.ns}, "", func(spaces map[string]*space, _ []record) ([]string, error) {
			sp := spaces[s.ns]
			if sp != nil && sp.same && !lost(floor, sp) {
				at = sp.position()
				return nil, nil
			}
			history := randomHistory()
			if sp == nil {
				at = store.Position{} // it may be another process whose row stays
				return []string{s.Ignore + " INTO " + s.Prefix + "namespace (ns, head, history, place, trimmed, moved, origin) VALUES (" + s.Text(s.ns) +
					", 0, " + strconv.FormatInt(history, 10) + ", " + s.Now() + " * 65536, 0, 0, (" + s.Origin + "))"}, nil
			}
			head, place := max(sp.head, sp.now<<16), max(sp.place, sp.now<<16)
			at = position(history, head)
			return []string{fmt.Sprintf("UPDATE %snamespace SET history = %d, head = %d, place = %d, origin = (%s) WHERE ns = %s",
				s.Prefix, history, head, place, s.Origin, s.Text(s.ns))}, nil
		})
	})
	if err != nil {
		return err
	}
	if at != (store.Position{}) {
		s.mu.Lock()
		s.seen = at
		s.mu.Unlock()
		s.hear.wake(s.ns)
		return nil
	}
	return s.adopt(ctx) // reads the row that is there now
}

func (s *Store) gone() error {
	return fmt.Errorf("%s: the namespace %q is gone from its table", s.Name, s.ns)
}
