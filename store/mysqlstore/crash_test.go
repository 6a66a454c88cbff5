package mysqlstore_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/mysqlstore"
	"github.com/apitoken-go/apitoken/store/mysqlstore/mysqltest"
)

// The test binary is a process of the fleet, when this has the DSN of its server.
const childVariable = "APITOKEN_MYSQLSTORE_CHILD"

const (
	fleet   = 8
	workers = 2 // in each process
)

// child writes until it is killed. Each worker has a counter record, rewritten by each change together with a new rule and
// an event, all named by the same number, and all of them share one more counter. What was acknowledged goes to standard
// output; where the server is away, the same change is repeated until it is.
func child(dsn, prefix, name string) {
	_ = mysql.SetLogger(&mysql.NopLogger{})
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(3)
	}
	var s *mysqlstore.Store
	for began := time.Now(); ; {
		s, err = mysqlstore.Open(context.Background(), cfg, &mysqlstore.Options{Prefix: prefix, MaxConns: 4})
		if err == nil {
			break
		}
		if time.Since(began) > time.Minute {
			fmt.Println("error", err)
			os.Exit(3)
		}
	}
	var out sync.Mutex
	for w := range workers {
		go work(s, fmt.Sprintf("%s-%d", name, w), func(line ...any) {
			out.Lock()
			defer out.Unlock()
			fmt.Println(line...)
		})
	}
	select {}
}

func work(s *mysqlstore.Store, worker string, say func(...any)) {
	ctx := context.Background()
	n, expect := 0, store.Version{}
	if r, err := s.Get(ctx, "grant", worker); err == nil {
		n, _ = strconv.Atoi(string(r.Data))
		expect = r.Version
	} else if !errors.Is(err, store.ErrNotFound) {
		say("gone", err) // the server was killed too: the next round has another
		return
	}
	for {
		n++
		name := fmt.Sprintf("%s-%09d", worker, n)
		c := &store.Change{
			Puts: []store.Put{
				{Record: store.Record{Kind: "grant", ID: worker, Data: []byte(strconv.Itoa(n))}, Expect: expect},
				{Record: store.Record{Kind: store.KindRule, ID: name, Subject: worker}},
			},
			Events: []store.Record{{Kind: store.KindEvent, ID: name, Grant: worker}},
		}
		_, _ = rand.Read(c.ID[:]) // never fails
		for {
			_, err := s.Apply(ctx, c)
			if err == nil {
				break
			}
			if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrInvalid) {
				say("error", err)
				return
			}
			time.Sleep(5 * time.Millisecond) // as a client does before it tries again
		}
		expect = c.ID
		say("ack", worker, n)
		for { // the common counter, which others write between our look and our change
			r, err := s.Get(ctx, store.KindMeta, "common")
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				break
			}
			total, _ := strconv.Atoi(string(r.Data))
			p := store.Put{Record: store.Record{Kind: store.KindMeta, ID: "common", Data: []byte(strconv.Itoa(total + 1))}, Expect: r.Version}
			c := &store.Change{Puts: []store.Put{p}}
			_, _ = rand.Read(c.ID[:])
			if _, err = s.Apply(ctx, c); err == nil {
				say("common", total+1)
			}
			if !errors.Is(err, store.ErrConflict) {
				break
			}
		}
	}
}

// TestFleetIsKilled: eight processes write to one server, and are killed at arbitrary moments, in one round in three with the
// server. What was acknowledged is there, of each change all or nothing, once; the one counter that all of them raise was
// never given the same value twice; and a follower that went on all the while has each rule.
func TestFleetIsKilled(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	srv := mysqltest.Private(t, mysqltest.Quick...)
	p := prefix()
	s := open(t, config(t, srv), mysqlstore.Options{Prefix: p})
	v, err := s.Follow(ctx, store.Position{}, nil, 1)
	require.NoError(t, err)
	history := v.Next.History

	followed := map[string]bool{}
	stop, done := make(chan struct{}), make(chan error, 1)
	follow := func(after store.Position) (store.Position, error) {
		for {
			v, err := s.Follow(ctx, after, []store.Kind{store.KindRule}, 500)
			if err != nil {
				return after, err
			}
			for _, r := range v.Records {
				followed[r.ID] = true
			}
			if after = v.Next; !v.More {
				return after, nil
			}
		}
	}
	go func() {
		after := v.Next
		for {
			select {
			case <-stop:
				_, err := follow(after)
				done <- err
				return
			default:
			}
			wait, cancel := context.WithTimeout(ctx, time.Second)
			_ = s.Wait(wait, after)
			cancel()
			next, err := follow(after)
			if errors.Is(err, store.ErrDiverged) {
				done <- err
				return
			}
			after = next
		}
	}()

	acked, common := map[string]int{}, map[int]int{}
	for round := range 6 {
		var mu sync.Mutex // guards acked, common
		var all sync.WaitGroup
		var total atomic.Int64
		for n := range fleet {
			cmd := exec.Command(os.Args[0], p, fmt.Sprint("p", n))
			cmd.Env = append(os.Environ(), childVariable+"="+srv.DSN)
			pipe, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			all.Go(func() {
				sc := bufio.NewScanner(pipe)
				left := 1 + mrand.IntN(40) // answers, so that the kill falls into any part of a change
				for sc.Scan() {
					f := strings.Fields(sc.Text())
					mu.Lock()
					switch f[0] {
					case "ack":
						acked[f[1]], _ = strconv.Atoi(f[2])
					case "common":
						n, _ := strconv.Atoi(f[1])
						common[n]++
					case "error":
						t.Error(sc.Text())
					}
					mu.Unlock()
					if left--; left == 0 || f[0] != "ack" && f[0] != "common" {
						_ = cmd.Process.Kill() // and what it wrote before is read
					}
					if total.Add(1) == 60 && round%3 == 1 {
						srv.Stop()
						if err := srv.Run(); err != nil {
							t.Error(err)
						}
					}
				}
				_ = cmd.Process.Kill() // also where a line was too long
				_ = cmd.Wait()
			})
		}
		all.Wait()

		v, err := s.Follow(ctx, store.Position{}, nil, 1)
		require.NoError(t, err)
		require.Equal(t, history, v.Next.History, "no crash is another history")
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
	}
	for n, times := range common {
		require.Equal(t, 1, times, "the value %d of one counter was acknowledged twice", n)
	}
	close(stop)
	require.NoError(t, <-done)
	rules := 0
	for _, n := range acked {
		rules += n
	}
	require.Len(t, followed, rules, "the follower has each rule")
	t.Logf("%d changes of %d processes, %d of one counter", rules, fleet, len(common))
}

func pages(t testing.TB, s *mysqlstore.Store, q store.Query) (out []store.Record) {
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
