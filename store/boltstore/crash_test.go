package boltstore

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
)

const (
	crashRounds  = 30
	crashWorkers = 8
)

// crashChild writes until it is killed. Each worker has a counter record, rewritten by each change together with a new
// rule, a new grant and an event, all named by the same number; what was acknowledged goes to standard output.
func crashChild(path string) {
	groupMembers, mergeWidth = 16, 3 // so that it is merging whenever it is killed
	s, err := Open(path, nil)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(3)
	}
	fmt.Println("open")
	ctx := context.Background()
	go func() { // in use, the file is compacted and purged as well
		for {
			if err := s.Compact(ctx); err != nil {
				fmt.Println("error", err)
			}
			if _, err := s.Purge(ctx, "junk", time.Now().UnixMilli(), 100); err != nil {
				fmt.Println("error", err)
			}
		}
	}()
	var out sync.Mutex
	for w := range crashWorkers {
		go func() {
			n, expect := 0, store.Version{}
			if r, err := s.Get(ctx, "grant", counterID(w)); err == nil {
				n, _ = strconv.Atoi(string(r.Data))
				expect = r.Version
			}
			for {
				n++
				c := crashChange(w, n, expect)
				if _, err := s.Apply(ctx, c); err != nil {
					out.Lock()
					fmt.Println("error", err)
					out.Unlock()
					return
				}
				expect = c.ID
				out.Lock()
				fmt.Println("ack", w, n, hex.EncodeToString(c.ID[:]))
				out.Unlock()
			}
		}()
	}
	select {}
}

func counterID(w int) string { return fmt.Sprint("counter-", w) }

func crashChange(w, n int, expect store.Version) *store.Change {
	name := fmt.Sprintf("%d-%09d", w, n)
	return &store.Change{
		ID: newVersion(),
		Puts: []store.Put{
			{Record: store.Record{Kind: "grant", ID: counterID(w), Data: []byte(strconv.Itoa(n))}, Expect: expect},
			{Record: store.Record{Kind: store.KindRule, ID: name, Subject: counterID(w)}},
			{Record: store.Record{Kind: "junk", ID: name, Expires: 1 + time.Now().UnixMilli()}},
		},
		Events: []store.Record{{Kind: store.KindEvent, ID: name, Grant: counterID(w)}},
	}
}

// TestKill9 kills a writing process again and again and opens the file after each: what was acknowledged is there, and
// of each change all or nothing.
func TestKill9(t *testing.T) {
	t.Parallel()
	path, ctx := filepath.Join(t.TempDir(), "tokens.db"), context.Background()
	acked := map[int]int{}
	var history uint64
	for round := range crashRounds {
		cmd := child(t, "crash", path)
		pipe, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		sc := bufio.NewScanner(pipe)
		require.True(t, sc.Scan())
		require.Equal(t, "open", sc.Text())
		// Killed after so many acknowledgements, which puts the kill at any point of a commit.
		for left := rand.IntN(200); sc.Scan(); left-- {
			f := strings.Fields(sc.Text())
			require.Equal(t, "ack", f[0], sc.Text())
			w, _ := strconv.Atoi(f[1])
			acked[w], _ = strconv.Atoi(f[2])
			if left == 0 {
				require.NoError(t, cmd.Process.Kill())
			}
		}
		_ = cmd.Wait()

		s, err := Open(path, nil)
		require.NoError(t, err, "round %d", round)
		require.False(t, s.Restored(), "a crash is not a restore")
		view, err := s.Follow(ctx, store.Position{}, nil, 1)
		require.NoError(t, err)
		if round > 0 {
			require.Equal(t, history, view.Next.History)
		}
		history = view.Next.History
		checkAcked(t, s, acked, fmt.Sprint("round ", round))
		require.NoError(t, s.Close())
		f, err := os.Open(path)
		require.NoError(t, err)
		require.NoError(t, inspect(f), "round %d", round)
		require.NoError(t, f.Close())
	}
}

// checkAcked looks for what was acknowledged to each worker, and that of each change there is all or nothing. acked is
// what the file says afterwards.
func checkAcked(t *testing.T, s *Store, acked map[int]int, name string) {
	t.Helper()
	ctx := context.Background()
	for w := range crashWorkers {
		r, err := s.Get(ctx, "grant", counterID(w))
		if acked[w] == 0 && err != nil {
			continue
		}
		require.NoError(t, err)
		n, _ := strconv.Atoi(string(r.Data))
		require.GreaterOrEqual(t, n, acked[w], "%s: an acknowledged change is there", name)
		require.LessOrEqual(t, n, acked[w]+1, "a worker has one change under way")
		acked[w] = n
		rules := all(t, s, store.Query{Kind: store.KindRule, Subject: counterID(w)})
		require.Len(t, rules, n, "%s: each change has its rule", name)
		events := all(t, s, store.Query{Kind: store.KindEvent, Grant: counterID(w)})
		require.Len(t, events, n, "%s: each change has its event", name)
		for i, e := range events {
			require.Equal(t, fmt.Sprintf("%d-%09d", w, i+1), e.ID)
			require.Equal(t, rules[i].Version, e.Version, "a rule and its event are of one change")
		}
	}
}
