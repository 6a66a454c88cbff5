package boltstore

import (
	"bytes"
	"context"
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
// reading it fails, or what is read is right: nothing is silently missing, above all no revocation.
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
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	meta, err := findMeta(bytes.NewReader(good), int64(len(good)))
	require.NoError(t, err)
	ps := int(meta.pageSize)

	harmed := filepath.Join(t.TempDir(), "tokens.db")
	refused, right := 0, 0
	try := func(what string, b []byte) {
		require.NoError(t, os.WriteFile(harmed, b, 0o600))
		s, err := Open(harmed, &Options{ReadOnly: true})
		if err != nil {
			refused++
			return
		}
		defer s.Close()
		got, err := everything(s)
		if err != nil {
			refused++
			return
		}
		right++
		for name := range want {
			require.True(t, bytes.Equal(got[name], want[name]), "%s: %s is not what was written", what, name)
		}
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 40 {
		page := 2 + rnd.IntN(int(meta.pages)-2)
		b := bytes.Clone(good)
		clear(b[page*ps : (page+1)*ps])
		try(fmt.Sprintf("page %d lost", page), b)
		b = bytes.Clone(good)
		at := 2*ps + rnd.IntN(int(meta.pages-2)*ps)
		b[at] ^= 1 << rnd.IntN(8)
		try(fmt.Sprintf("byte %d of page %d flipped", at%ps, at/ps), b)
	}
	require.Positive(t, refused)
	t.Logf("%d refused, %d right all the same", refused, right)
}
