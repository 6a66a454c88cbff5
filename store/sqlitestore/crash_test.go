package sqlitestore_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/sqlitestore"
)

// The test binary is its own other process: this names the file that it writes until it is killed.
const childVariable = "APITOKEN_SQLITESTORE_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childVariable); path != "" {
		crashChild(path, os.Args[1])
	}
	os.Exit(m.Run())
}

const (
	crashRounds    = 15
	crashProcesses = 2
	crashWorkers   = 4
)

// crashChild writes until it is killed. Each worker has a counter record, rewritten by each change together with a new
// rule and an event, all named by the same number; what was acknowledged goes to standard output.
func crashChild(path, name string) {
	s, err := sqlitestore.Open(path, nil)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(3)
	}
	fmt.Println("open")
	ctx := context.Background()
	var out sync.Mutex
	for w := range crashWorkers {
		go func() {
			worker := fmt.Sprint(name, w)
			n, expect := 0, store.Version{}
			if r, err := s.Get(ctx, "grant", worker); err == nil {
				n, _ = strconv.Atoi(string(r.Data))
				expect = r.Version
			}
			for {
				n++
				c := crashChange(worker, n, expect)
				if _, err := s.Apply(ctx, c); err != nil {
					fmt.Println("error", err)
					return
				}
				expect = c.ID
				out.Lock()
				fmt.Println("ack", worker, n, hex.EncodeToString(c.ID[:]))
				out.Unlock()
			}
		}()
	}
	select {}
}

func crashChange(worker string, n int, expect store.Version) *store.Change {
	name := fmt.Sprintf("%s-%09d", worker, n)
	c := &store.Change{
		Puts: []store.Put{
			{Record: store.Record{Kind: "grant", ID: worker, Data: []byte(strconv.Itoa(n))}, Expect: expect},
			{Record: store.Record{Kind: store.KindRule, ID: name, Subject: worker}},
		},
		Events: []store.Record{{Kind: store.KindEvent, ID: name, Grant: worker}},
	}
	_, _ = rand.Read(c.ID[:]) // never fails
	return c
}

// TestKill9 kills processes that write the same file again and again, and opens it after each: what was acknowledged is
// there, and of each change all or nothing.
func TestKill9(t *testing.T) {
	t.Parallel()
	path, ctx := filepath.Join(t.TempDir(), "tokens.db"), context.Background()
	acked := map[string]int{}
	var history uint64
	for round := range crashRounds {
		var mu sync.Mutex // guards acked
		var all sync.WaitGroup
		for p := range crashProcesses {
			cmd := exec.Command(os.Args[0], fmt.Sprintf("p%d-", p))
			cmd.Env = append(os.Environ(), childVariable+"="+path)
			pipe, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			all.Go(func() {
				sc := bufio.NewScanner(pipe)
				left := 1 + mrand.IntN(100) // acknowledgements, so that the kill falls into any part of a commit
				for sc.Scan() {
					f := strings.Fields(sc.Text())
					if f[0] == "open" {
						continue
					}
					if f[0] != "ack" {
						t.Error(sc.Text())
						break
					}
					mu.Lock()
					acked[f[1]], _ = strconv.Atoi(f[2])
					mu.Unlock()
					if left--; left == 0 {
						_ = cmd.Process.Kill()
					}
				}
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			})
		}
		all.Wait()

		s := open(t, path, nil)
		require.False(t, s.Restored(), "a crash is not a restore")
		view, err := s.Follow(ctx, store.Position{}, nil, 1)
		require.NoError(t, err)
		if round > 0 {
			require.Equal(t, history, view.Next.History)
		}
		history = view.Next.History
		for worker, last := range acked {
			r, err := s.Get(ctx, "grant", worker)
			require.NoError(t, err)
			n, _ := strconv.Atoi(string(r.Data))
			require.GreaterOrEqual(t, n, last, "an acknowledged change is there")
			require.LessOrEqual(t, n, last+1, "a worker has one change under way")
			acked[worker] = n
			require.Len(t, pages(t, s, store.Query{Kind: store.KindRule, Subject: worker}), n, "each change has its rule")
			events := pages(t, s, store.Query{Kind: store.KindEvent, Grant: worker})
			require.Len(t, events, n, "each change has its event")
			for i, e := range events {
				require.Equal(t, fmt.Sprintf("%s-%09d", worker, i+1), e.ID)
			}
		}
		require.NoError(t, s.Close())
	}
}

func pages(t *testing.T, s *sqlitestore.Store, q store.Query) (out []store.Record) {
	t.Helper()
	for {
		p, err := s.List(context.Background(), q)
		require.NoError(t, err)
		out = append(out, p.Records...)
		if q.Cursor = p.Cursor; q.Cursor == "" {
			return out
		}
	}
}
