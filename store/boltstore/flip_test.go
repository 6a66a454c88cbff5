package boltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
)

// everything reads what the store says in each way that there is.
func everything(s *Store) (out map[string][]byte, err error) {
	ctx := context.Background()
	out = map[string][]byte{}
	add := func(name string, r *store.Record) {
		out[name] = fmt.Appendln(out[name], r.Kind, r.ID, r.Version, r.Pos.N, r.Written, r.Expires, string(r.Data))
	}
	for p, more := (store.Position{}), true; more; {
		v, err := s.Follow(ctx, p, nil, 100)
		if err != nil {
			return nil, err
		}
		for i := range v.Records {
			add("followed", &v.Records[i])
		}
		p, more = v.Next, v.More
	}
	for _, kind := range []store.Kind{store.KindRule, "grant", store.KindEvent} {
		for _, q := range []store.Query{{Kind: kind}, {Kind: kind, Newest: true}, {Kind: kind, Subject: "s1"}} {
			name := fmt.Sprintf("%+v", q)
			for more := true; more; more = q.Cursor != "" {
				page, err := s.List(ctx, q)
				if err != nil {
					return nil, err
				}
				for i := range page.Records {
					add(name, &page.Records[i])
				}
				q.Cursor = page.Cursor
			}
		}
	}
	return out, nil
}

// TestDamageIsNotBelieved flips bits and loses pages anywhere in a file with all that there is in one. Opening it or
// reading it fails, or what is read is right: nothing is silently missing, above all no revocation. After a clean close
// Open looks at the state alone: grants and events may be missing then, but no state, and no record is wrong.
func TestDamageIsNotBelieved(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens.db")
	s := openT(t, path, nil)
	var last *request
	for i := range 2300 { // a block and a run, and some behind them
		id, subject := fmt.Sprintf("%06d", i), fmt.Sprint("s", i%50)
		p, e := put("grant", id, store.Version{}), event(id)
		p.Subject, p.Expires, e.Subject = subject, 1<<45, subject
		c := &store.Change{ID: newVersion(), Puts: []store.Put{p}, Events: []store.Record{e}}
		if i%10 == 0 {
			p := put(store.KindRule, id, store.Version{})
			p.Subject = subject
			c.Puts = append(c.Puts, p)
		}
		last = &request{sp: s.space, in: newIntent(c), done: make(chan struct{})}
		s.queueMu.Lock()
		s.queue = append(s.queue, last)
		s.queueMu.Unlock()
	}
	s.wake <- struct{}{}
	<-last.done
	want, err := everything(s)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	mark := readMark(t, path)
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	meta, err := findMeta(bytes.NewReader(good), int64(len(good)))
	require.NoError(t, err)
	ps := int(meta.pageSize)

	harmed := filepath.Join(t.TempDir(), "tokens.db")
	refused, right := 0, 0
	use := func(what string, closed bool, exact func(name string) bool) {
		s, err := Open(harmed, &Options{ReadOnly: true})
		if err != nil {
			refused++
			return
		}
		defer s.Close()
		require.Equal(t, closed, s.clean, what)
		for i := range 2300 {
			kind := store.Kind("grant")
			if i%10 == 0 {
				kind = store.KindRule
			}
			r, err := s.Get(context.Background(), kind, fmt.Sprintf("%06d", i))
			switch {
			case errors.Is(err, ErrDamaged):
				refused++
				return
			case errors.Is(err, store.ErrNotFound) && !kind.State() && closed:
				continue
			}
			require.NoError(t, err, what)
			require.Equal(t, fmt.Sprintf("data of %06d", i), string(r.Data), what)
		}
		got, err := everything(s)
		if err != nil {
			refused++
			return
		}
		right++
		for name := range want {
			if exact(name) {
				require.True(t, bytes.Equal(got[name], want[name]), "%s: %s is not what was written", what, name)
			}
			requirePart(t, got[name], want[name], what, name)
		}
	}
	try := func(what string, b []byte, exact func(name string) bool) {
		require.NoError(t, os.WriteFile(harmed, b, 0o600))
		require.NoError(t, os.RemoveAll(harmed+".mark"))
		use(what, false, exact)
		if stateOf(harmed) != (fileState{}) {
			sayClosed(t, harmed, mark)
			use(what+", closed", true, func(name string) bool {
				return name == "followed" || name == fmt.Sprintf("%+v", store.Query{Kind: store.KindRule})
			})
		}
	}
	everyName := func(string) bool { return true }
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 40 {
		page := 2 + rnd.IntN(int(meta.pages)-2)
		b := bytes.Clone(good)
		clear(b[page*ps : (page+1)*ps])
		try(fmt.Sprintf("page %d lost", page), b, everyName)
		b = bytes.Clone(good)
		at := 2*ps + rnd.IntN(int(meta.pages-2)*ps)
		b[at] ^= 1 << rnd.IntN(8)
		try(fmt.Sprintf("byte %d of page %d flipped", at%ps, at/ps), b, everyName)
	}

	// A wrong key in a branch page may still be in order there.
	var keys []int
	for page := 2; page < int(meta.pages); page++ {
		keys = append(keys, branchKeys(good[page*ps:(page+1)*ps], page*ps)...)
	}
	require.NotEmpty(t, keys)
	for range 60 {
		at := keys[rnd.IntN(len(keys))]
		b := bytes.Clone(good)
		b[at] ^= 1 << rnd.IntN(8)
		try(fmt.Sprintf("key at byte %d of branch page %d flipped", at%ps, at/ps), b, everyName)
	}
	require.Positive(t, refused)
	t.Logf("%d refused, %d right all the same", refused, right)
}

// requirePart fails where a line of got, which is what everything says under name, is none of want's.
func requirePart(t testing.TB, got, want []byte, what, name string) {
	t.Helper()
	written := map[string]bool{}
	for line := range bytes.Lines(want) {
		written[string(line)] = true
	}
	for line := range bytes.Lines(got) {
		require.True(t, written[string(line)], "%s: %s has %q, which was not written", what, name, line)
	}
}

// branchKeys are the places of the bytes of the keys in a branch page, which begins at off. bbolt writes the keys one after
// the other behind the entries.
func branchKeys(page []byte, off int) (at []int) {
	const header, entry, flagBranch = 16, 16, 1
	if binary.NativeEndian.Uint16(page[8:]) != flagBranch {
		return nil
	}
	from := header + entry*int(binary.NativeEndian.Uint16(page[10:]))
	to := from
	for e := header; e < from; e += entry {
		to += int(binary.NativeEndian.Uint32(page[e+4:]))
	}
	for i := from; i < to; i++ {
		at = append(at, off+i)
	}
	return at
}
