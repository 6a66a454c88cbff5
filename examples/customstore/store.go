// Package customstore is a store of one's own in one file, as short as is honest: a map, a mutex, and a journal of JSON
// lines that is synced before an answer and read again at Open. It passes storetest whole:
//
//	go test ./examples/customstore
//
// Begin here when your engine has no store yet: keep the order of checks in Apply, replace map and journal by your
// engine's transaction, and let storetest tell what is missing. Its limits: everything is in memory, List, Follow and
// Purge look at every record, the journal only grows, and one process has it open.
//
// A journal that was put back from a backup lacks revocations, so it begins a new History. It is known by its inode, and by a
// mark beside it, which says how far the journal had come. Whoever backs up the mark as well keeps it elsewhere: [OpenMarked].
package customstore

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// Store is one namespace in one file.
type Store struct {
	mu      sync.Mutex // guards all of it
	file    *os.File
	mark    *os.File
	size    int64 // of the journal, up to the last whole line
	history uint64
	id      uint64 // of the file in which history began
	head    int64  // Pos.N of the last state change
	number  int    // of the last event
	trimmed string
	records map[key]store.Record
}

// key is where a record stands in the order of its kind: at its ID, an event at its number.
type key struct {
	Kind  store.Kind
	Place string
}

// line is one entry of the journal: what changed, with its stamps.
type line struct {
	History uint64         `json:",omitempty"`
	File    uint64         `json:",omitempty"` // in which History began, see identity
	Records []store.Record `json:",omitempty"`
	Gone    []key          `json:",omitempty"`
}

// begin is how a journal begins; a file that begins otherwise is not touched.
const begin = `{"History":`

var errForeign = errors.New("not a journal of this package")

// Open opens or makes the journal, with its mark in path.mark. A line that a crash left half written was never acknowledged,
// and is cut off.
func Open(path string) (*Store, error) { return OpenMarked(path, path+".mark") }

// OpenMarked is Open with the mark in a file of this name. On a disk that no restore of the journal's disk puts back, it finds
// a restored snapshot of that disk too. Each journal needs a mark of its own.
func OpenMarked(path, mark string) (_ *Store, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	m, err := os.OpenFile(mark, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s := &Store{file: f, mark: m, records: map[key]store.Record{}}
	for in := bufio.NewReader(f); err == nil; {
		var text []byte
		if text, err = in.ReadBytes('\n'); err == nil {
			l := line{}
			if err = json.Unmarshal(text, &l); err == nil && s.history == 0 && l.History == 0 {
				err = errForeign
			} else if err == nil {
				s.take(&l)
				s.size += int64(len(text))
			}
		} else if err == io.EOF && s.size == 0 && !bytes.HasPrefix([]byte(begin), text[:min(len(text), len(begin))]) {
			err = errForeign
		}
	}
	if err == io.EOF {
		err = f.Truncate(s.size)
	}
	id := uint64(0)
	if err == nil {
		id, err = identity(f)
	}
	same := false
	if err == nil {
		same, err = s.marked()
	}
	if err == nil && (s.history == 0 || s.id != id || !same) {
		// The file is not as it was last written: new, copied, or put back from a backup, and then acknowledged revocations
		// may be lost. Whoever followed the old History must notice.
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		err = s.write(&line{History: binary.BigEndian.Uint64(b[:]) | 1, File: id})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s at %d: %w", path, s.size, err), f.Close(), m.Close())
	}
	return s, nil
}

// A mark is the History of the journal and its size. It is written after each line without waiting for the disk: a mark that
// is behind after a power failure proves nothing, and is never ahead of a journal that kept what it acknowledged.
const markForm = "%016x %020d\n"

// marked reports whether the journal has come as far as its mark says.
func (s *Store) marked() (bool, error) {
	b, err := io.ReadAll(io.LimitReader(s.mark, 64))
	if err != nil {
		return false, err
	}
	var history uint64
	var size int64
	_, none := fmt.Sscanf(string(b), markForm, &history, &size)
	return none == nil && history == s.history && size <= s.size, nil
}

// identity is the file's inode, 0 where the platform has none.
func identity(f *os.File) (uint64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if sys := reflect.Indirect(reflect.ValueOf(fi.Sys())); sys.Kind() == reflect.Struct {
		if ino := sys.FieldByName("Ino"); ino.IsValid() && ino.CanUint() {
			return ino.Uint(), nil
		}
	}
	return 0, nil
}

// Close closes the journal. What is written later answers an error.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.file.Close(), s.mark.Close())
}

// write makes l durable, then takes it. After an error the journal is cut back; if that fails too, so does every write
// that follows, since nobody can tell what the file holds.
func (s *Store) write(l *line) error {
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if _, err = s.file.WriteAt(append(text, '\n'), s.size); err == nil {
		err = s.file.Sync()
	}
	if err != nil {
		if s.file.Truncate(s.size) != nil || s.file.Sync() != nil {
			_ = s.file.Close()
		}
		return err
	}
	s.size += int64(len(text)) + 1
	s.take(l)
	_, err = s.mark.WriteAt(fmt.Appendf(nil, markForm, s.history, s.size), 0) // an error means unknown, and l may be repeated
	return err
}

func (s *Store) take(l *line) {
	if l.History != 0 {
		s.history, s.id = l.History, l.File
		for k, r := range s.records {
			if r.Pos.N != 0 {
				r.Pos.History = s.history
				s.records[k] = r
			}
		}
	}
	for _, r := range l.Records {
		s.head = max(s.head, r.Pos.N)
		k := key{r.Kind, r.ID}
		if r.Kind == store.KindEvent {
			s.number++
			k.Place = fmt.Sprintf("%020d", s.number)
		}
		s.records[k] = r
	}
	for _, k := range l.Gone {
		delete(s.records, k)
		if k.Kind == store.KindEvent {
			s.trimmed = max(s.trimmed, k.Place)
		}
	}
}

// now follows the machine's clock, back too: one that stood still until the machine's had caught up would leave grace
// windows open. Positions rise all the same.
func now() int64 { return time.Now().UnixMilli() }

// own copies a record away from whoever has the original.
func own(r store.Record) store.Record {
	for _, f := range []*string{(*string)(&r.Kind), &r.ID, &r.Subject, &r.Client, &r.Grant, &r.Token, &r.Type} {
		*f = strings.Clone(*f)
	}
	r.Data = slices.Clone(r.Data)
	return r
}

// Get implements [store.Store].
func (s *Store) Get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.records[key{kind, id}]
	if !ok || kind == store.KindEvent {
		return store.Record{}, cmp.Or(ctx.Err(), store.ErrNotFound)
	}
	return own(r), ctx.Err()
}

// Apply implements [store.Store].
func (s *Store) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	if err := cmp.Or(ctx.Err(), store.Check(c)); err != nil {
		return store.Commit{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at, head, conflict, altered := now(), s.head, false, false
	l := &line{}
	for _, p := range c.Puts {
		kept, there := s.records[key{p.Kind, p.ID}]
		old := kept.Version
		if old == c.ID { // done before
			return store.Commit{Head: store.Position{History: s.history, N: s.head}, Now: at}, nil
		}
		conflict = conflict || old != p.Expect
		altered = altered || there && !p.SameSelectors(&kept)
		r := own(p.Record)
		r.Version, r.Written, r.Pos = c.ID, at, store.Position{}
		if r.Kind.State() {
			head = max(head+1, at<<16)
			r.Pos = store.Position{History: s.history, N: head}
		}
		l.Records = append(l.Records, r)
	}
	if conflict {
		return store.Commit{}, store.ErrConflict
	}
	if altered {
		return store.Commit{}, fmt.Errorf("%w: what List selects by is fixed for the life of a record", store.ErrInvalid)
	}
	for _, e := range c.Events {
		e = own(e)
		e.Version, e.Written, e.Pos = c.ID, at, store.Position{}
		l.Records = append(l.Records, e)
	}
	err := s.write(l) // an error means unknown: the caller repeats c
	return store.Commit{Head: store.Position{History: s.history, N: s.head}, Now: at}, err
}

// Follow implements [store.Store].
func (s *Store) Follow(ctx context.Context, after store.Position, kinds []store.Kind, limit int) (store.View, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if after != (store.Position{}) && (after.History != s.history || after.N > s.head) {
		return store.View{}, store.ErrDiverged
	}
	v := store.View{Next: store.Position{History: s.history, N: s.head}, Now: now()}
	for _, r := range s.records {
		if r.Pos.N > after.N && (len(kinds) == 0 || slices.Contains(kinds, r.Kind)) {
			v.Records = append(v.Records, own(r))
		}
	}
	slices.SortFunc(v.Records, func(a, b store.Record) int { return cmp.Compare(a.Pos.N, b.Pos.N) })
	if limit = max(limit, 1); len(v.Records) > limit {
		v.Records, v.Next, v.More = v.Records[:limit], v.Records[limit-1].Pos, true
	}
	return v, ctx.Err()
}

// List implements [store.Store]. A cursor is the place of the last record before it.
func (s *Store) List(ctx context.Context, q store.Query) (store.Page, error) {
	if possible, err := q.Check(); !possible {
		return store.Page{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := base64.RawURLEncoding.DecodeString(q.Cursor)
	after := string(b)
	if err != nil {
		err = store.ErrInvalid
	} else if after != "" && after < s.trimmed && q.Kind == store.KindEvent && !q.Newest {
		err = store.ErrTrimmed
	}
	if err != nil {
		return store.Page{}, err
	}
	var places []string
	for k, r := range s.records {
		if k.Kind == q.Kind && q.Matches(&r) && (after == "" || k.Place != after && (k.Place > after) != q.Newest) {
			places = append(places, k.Place)
		}
	}
	slices.Sort(places)
	if q.Newest {
		slices.Reverse(places)
	}
	var page store.Page
	if limit := q.Limit; len(places) > limit {
		places = places[:limit]
		page.Cursor = base64.RawURLEncoding.EncodeToString([]byte(places[limit-1]))
	}
	for _, p := range places {
		page.Records = append(page.Records, own(s.records[key{q.Kind, p}]))
	}
	return page, ctx.Err()
}

// Purge implements [store.Store].
func (s *Store) Purge(ctx context.Context, kind store.Kind, before int64, limit int) (int, error) {
	if err := kind.Check(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before = min(before, now()+1) // alive is Expires > now
	l := &line{}
	for k, r := range s.records {
		if len(l.Gone) < limit && k.Kind == kind && r.Expires > 0 && r.Expires < before {
			l.Gone = append(l.Gone, k)
		}
	}
	if len(l.Gone) == 0 || ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if err := s.write(l); err != nil {
		return 0, err
	}
	return len(l.Gone), nil
}
