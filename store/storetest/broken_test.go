package storetest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// A suite that passes everything proves nothing. Here are stores with one mistake each, and the subtest that must not
// let it through; it runs in a child process, since a failed subtest cannot be taken back.

const brokenEnv = "STORETEST_BROKEN"

func TestSuiteBites(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	slots := make(chan struct{}, 4)
	for _, m := range mistakes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			defer func() { <-slots }()
			cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestBroken$/^"+strings.ReplaceAll(m.caughtBy, " ", "_")+"$", "-test.v")
			cmd.Env = append(os.Environ(), brokenEnv+"="+m.name)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			caught := "--- FAIL: TestBroken/" + strings.ReplaceAll(m.caughtBy, " ", "_")
			switch {
			case err == nil:
				t.Fatalf("a store that %s passes %q", m.name, m.caughtBy)
			case !errors.As(err, &exit) || !strings.Contains(string(out), caught) || strings.Contains(string(out), "panic"):
				t.Fatalf("a store that %s must fail %q by a failure of the test, not otherwise: %v\n%s", m.name, m.caughtBy, err, out)
			}
		})
	}
}

// TestBroken is the child of TestSuiteBites; by itself it does nothing.
func TestBroken(t *testing.T) {
	i := slices.IndexFunc(mistakes, func(m mistake) bool { return m.name == os.Getenv(brokenEnv) })
	if i < 0 {
		t.Skip("runs as a child process only")
	}
	patience = 200 * time.Millisecond
	if strings.HasPrefix(mistakes[i].name, hangs) {
		verbLimit = 200 * time.Millisecond
	}
	t.Run(namespaces, func(t *testing.T) {
		if m := mistakes[i]; m.caughtBy == namespaces {
			good := memstore.New()
			Namespaces(t, good, m.make(good))
		}
	})
	t.Run(stalled, func(t *testing.T) {
		if m := mistakes[i]; m.caughtBy == stalled {
			Stalled(t, m.make(memstore.New()), patience)
		}
	})
	kept := map[string]*memstore.Store{} // by directory, for a mistake that is made on opening again
	Run(t, func(t *testing.T, dir string) store.Store {
		if mistakes[i].again == nil {
			return mistakes[i].make(memstore.New())
		}
		if m := kept[dir]; m != nil {
			return mistakes[i].again(m, dir)
		}
		kept[dir] = memstore.New()
		if err := os.WriteFile(filepath.Join(dir, "data"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return mistakes[i].make(kept[dir])
	})
}

// namespaces is the subtest of mistakes that are made beside a good namespace.
const namespaces = "Namespaces"

// stalled is the subtest of mistakes that are made while the server is silent.
const stalled = "Stalled"

// silent is a store whose server says nothing, and which is right then.
func silent(m *memstore.Store) *broken {
	err := context.DeadlineExceeded
	return &broken{
		Store:  m,
		get:    func(context.Context, store.Kind, string) (store.Record, error) { return store.Record{}, err },
		apply:  func(context.Context, *store.Change) (store.Commit, error) { return store.Commit{}, err },
		follow: func(context.Context, store.Position, []store.Kind, int) (store.View, error) { return store.View{}, err },
		list:   func(context.Context, store.Query) (store.Page, error) { return store.Page{}, err },
		purge:  func(context.Context, store.Kind, int64, int) (int, error) { return 0, err },
	}
}

// hangs is how the names of mistakes begin that make a verb never end.
const hangs = "hangs in "

// wholeRun is all that the suite says of one mistake.
func wholeRun(t *testing.T, mistake string) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestBroken$", "-test.v")
	cmd.Env = append(os.Environ(), brokenEnv+"="+mistake)
	out, err := cmd.CombinedOutput()
	if err == nil || strings.Contains(string(out), "panic") {
		t.Fatalf("a store that %s: %v\n%s", mistake, err, out)
	}
	return string(out)
}

// A verb that never ends costs the suite one limit: the failure names the verb, and the subtests behind it are not run.
func TestAVerbThatNeverEnds(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"Get", "Apply", "Follow", "List", "Purge"} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			out := wholeRun(t, hangs+verb)
			if n := strings.Count(out, " has not returned after 200ms, and is given up: every verb ends within a Timeout"); n != 1 {
				t.Errorf("the failure is told %d times, want once:\n%s", n, out)
			}
			if n := strings.Count(out, "--- FAIL: TestBroken/"); n != 1 {
				t.Errorf("%d subtests fail, want the one in which %s hangs:\n%s", n, verb, out)
			}
			if !strings.Contains(out, "not run: "+verb) {
				t.Errorf("what was not run does not say that %s hangs:\n%s", verb, out)
			}
		})
	}
}

// A List that is wrong all the time is waited for once: from then on nothing takes it for slow.
func TestAListThatIsWrongIsWaitedForOnce(t *testing.T) {
	t.Parallel()
	for _, mistake := range []string{"lists nothing", "fails in List", "pages for ever"} {
		t.Run(mistake, func(t *testing.T) {
			t.Parallel()
			out := wholeRun(t, mistake)
			if n := strings.Count(out, "still after 200ms"); n > 1 {
				t.Errorf("it was waited for %d times:\n%s", n, out)
			}
		})
	}
}

func TestStalled(t *testing.T) {
	t.Parallel()
	Stalled(t, silent(memstore.New()), time.Minute)
}

type mistake struct {
	name     string // completes "a store that"
	caughtBy string // the subtest
	make     func(good *memstore.Store) store.Store
	again    func(good *memstore.Store, dir string) store.Store // opens what lies in dir a second time; nil: the store forgets
}

var mistakes = []mistake{
	{hangs + "Get", "Get", func(m *memstore.Store) store.Store {
		return &broken{Store: m, get: func(context.Context, store.Kind, string) (store.Record, error) { select {} }}
	}, nil},
	{hangs + "Apply", "Get", func(m *memstore.Store) store.Store {
		return &broken{Store: m, apply: func(context.Context, *store.Change) (store.Commit, error) { select {} }}
	}, nil},
	{hangs + "Follow", "Follow", func(m *memstore.Store) store.Store {
		return &broken{Store: m, follow: func(context.Context, store.Position, []store.Kind, int) (store.View, error) { select {} }}
	}, nil},
	{hangs + "List", "List", func(m *memstore.Store) store.Store {
		return &broken{Store: m, list: func(context.Context, store.Query) (store.Page, error) { select {} }}
	}, nil},
	{hangs + "Purge", "Purge", func(m *memstore.Store) store.Store {
		return &broken{Store: m, purge: func(context.Context, store.Kind, int64, int) (int, error) { select {} }}
	}, nil},
	{"lists nothing", "List", func(m *memstore.Store) store.Store {
		return &broken{Store: m, list: func(context.Context, store.Query) (store.Page, error) { return store.Page{}, nil }}
	}, nil},
	{"fails in List", "List", func(m *memstore.Store) store.Store {
		return &broken{Store: m, list: func(context.Context, store.Query) (store.Page, error) { return store.Page{}, errors.New("no index") }}
	}, nil},
	{"pages for ever", "List", func(m *memstore.Store) store.Store {
		return &broken{Store: m, list: func(ctx context.Context, q store.Query) (store.Page, error) {
			n, _ := strconv.Atoi(q.Cursor)
			q.Cursor = ""
			p, err := m.List(ctx, q)
			p.Cursor = strconv.Itoa(n + 1)
			return p, err
		}}
	}, nil},
	{"loses an event", "Events in order", func(m *memstore.Store) store.Store {
		return &broken{Store: m, apply: func(ctx context.Context, c *store.Change) (store.Commit, error) {
			if c = clone(c); len(c.Events) > 2 {
				c.Events = c.Events[:2]
			}
			return m.Apply(ctx, c)
		}}
	}, nil},
	{"answers Get from a cache", "Expected version", func(m *memstore.Store) store.Store {
		cache := map[string]store.Record{}
		return &broken{Store: m, get: func(ctx context.Context, k store.Kind, id string) (store.Record, error) {
			if r, ok := cache[string(k)+id]; ok {
				return r, nil
			}
			r, err := m.Get(ctx, k, id)
			if err == nil {
				cache[string(k)+id] = r
			}
			return r, err
		}}
	}, nil},
	{"waits for its caller's context", stalled, func(m *memstore.Store) store.Store {
		b := silent(m)
		b.list = func(ctx context.Context, _ store.Query) (store.Page, error) {
			<-ctx.Done()
			return store.Page{}, ctx.Err()
		}
		return b
	}, nil},
	{"says not found when its server is silent", stalled, func(m *memstore.Store) store.Store {
		b := silent(m)
		b.get = func(context.Context, store.Kind, string) (store.Record, error) {
			return store.Record{}, store.ErrNotFound
		}
		return b
	}, nil},
	{"answers from memory when its server is silent", stalled, func(m *memstore.Store) store.Store {
		b := silent(m)
		b.follow = m.Follow
		return b
	}, nil},
	{"ignores Expect", "Expected version", func(m *memstore.Store) store.Store { return &broken{Store: m, apply: ignoreExpect(m)} }, nil},
	{"lets the last writer win", "Counters", func(m *memstore.Store) store.Store {
		apply := ignoreExpect(m)
		return &broken{Store: m, apply: func(ctx context.Context, c *store.Change) (store.Commit, error) {
			pause(ctx, time.Millisecond) // others come between
			return apply(ctx, c)
		}}
	}, nil},
	{"writes the puts one by one", "All or nothing", func(m *memstore.Store) store.Store {
		return &broken{Store: m, apply: func(ctx context.Context, c *store.Change) (store.Commit, error) {
			for i := range c.Puts {
				if commit, err := m.Apply(ctx, &store.Change{ID: c.ID, Puts: c.Puts[i : i+1]}); err != nil {
					return commit, err
				}
			}
			return m.Apply(ctx, &store.Change{ID: c.ID, Events: c.Events})
		}}
	}, nil},
	{"writes the events of a conflict", "All or nothing", func(m *memstore.Store) store.Store {
		return &broken{Store: m, apply: func(ctx context.Context, c *store.Change) (store.Commit, error) {
			commit, err := m.Apply(ctx, c)
			if errors.Is(err, store.ErrConflict) {
				_, _ = m.Apply(ctx, &store.Change{ID: c.ID, Events: c.Events})
			}
			return commit, err
		}}
	}, nil},
	{"writes the events of a retry again", "Retry", func(m *memstore.Store) store.Store { return &broken{Store: m, apply: eventsAgain(m)} }, nil},
	{"writes the events of racing retries again", "Retry by many at once", func(m *memstore.Store) store.Store {
		return &broken{Store: m, apply: eventsAgain(m)}
	}, nil},
	{"calls a retry a conflict", "Retry", func(m *memstore.Store) store.Store {
		return &broken{Store: m, apply: func(ctx context.Context, c *store.Change) (store.Commit, error) {
			for _, p := range c.Puts {
				if r, err := m.Get(ctx, p.Kind, p.ID); err == nil && r.Version == c.ID {
					return store.Commit{}, store.ErrConflict
				}
			}
			return m.Apply(ctx, c)
		}}
	}, nil},
	{"calls giving up a conflict", "Cancelled before", func(m *memstore.Store) store.Store {
		return &broken{Store: m, apply: func(ctx context.Context, c *store.Change) (store.Commit, error) {
			if ctx.Err() != nil {
				return store.Commit{}, store.ErrConflict
			}
			return m.Apply(ctx, c)
		}}
	}, nil},
	{"takes any size", "Limits", func(m *memstore.Store) store.Store {
		return &broken{Store: m, apply: func(ctx context.Context, c *store.Change) (store.Commit, error) {
			for len(c.Puts) > 16 {
				if _, err := m.Apply(ctx, &store.Change{ID: c.ID, Puts: c.Puts[:16]}); err != nil {
					return store.Commit{}, err
				}
				c = &store.Change{ID: c.ID, Puts: c.Puts[16:], Events: c.Events}
			}
			return m.Apply(ctx, c)
		}}
	}, nil},
	{"begins the places of events again after a full purge", "Purge of all events", func(m *memstore.Store) store.Store {
		full := false
		return &broken{Store: m, purge: func(ctx context.Context, k store.Kind, before int64, max int) (int, error) {
			n, err := m.Purge(ctx, k, before, max)
			p, _ := m.List(ctx, store.Query{Kind: k, Limit: 1})
			full = full || k == store.KindEvent && n > 0 && len(p.Records) == 0
			return n, err
		}, list: func(ctx context.Context, q store.Query) (store.Page, error) {
			if full && q.Kind == store.KindEvent && q.Cursor != "" {
				return store.Page{}, store.ErrTrimmed
			}
			return m.List(ctx, q)
		}}
	}, nil},
	{"begins the places of events again when it is opened", "Purge of all events", func(m *memstore.Store) store.Store { return closer{m} },
		func(m *memstore.Store, _ string) store.Store {
			return &brokenCloser{broken{Store: m, list: func(ctx context.Context, q store.Query) (store.Page, error) {
				p, err := m.List(ctx, q)
				if q.Kind == store.KindEvent && err == nil && q.Cursor != "" {
					err = store.ErrTrimmed
				}
				return p, err
			}}}
		}},
	{"revives a session when its file is put back", "Put back from a backup", func(m *memstore.Store) store.Store { return closer{m} },
		func(m *memstore.Store, _ string) store.Store {
			return &brokenCloser{broken{Store: m, get: func(ctx context.Context, k store.Kind, id string) (store.Record, error) {
				if id == "revoked" {
					return store.Record{}, store.ErrNotFound
				}
				return m.Get(ctx, k, id)
			}}}
		}},
	{"knows a file that was put back by its inode only", "Overwritten by a backup", func(m *memstore.Store) store.Store { return closer{m} },
		func(m *memstore.Store, _ string) store.Store {
			return &brokenCloser{broken{Store: m, get: func(ctx context.Context, k store.Kind, id string) (store.Record, error) {
				if strings.HasPrefix(id, "revoked") {
					return store.Record{}, store.ErrNotFound
				}
				return m.Get(ctx, k, id)
			}}}
		}},
	{"writes for a caller that has gone", "Cancelled before", func(m *memstore.Store) store.Store {
		return &broken{Store: m, apply: func(ctx context.Context, c *store.Change) (store.Commit, error) {
			return m.Apply(context.WithoutCancel(ctx), c)
		}}
	}, nil},
	{"takes a kind of any length", "Refused changes", func(m *memstore.Store) store.Store {
		return &broken{Store: m, apply: func(ctx context.Context, c *store.Change) (store.Commit, error) {
			c = clone(c)
			for i := range c.Puts {
				c.Puts[i].Kind = c.Puts[i].Kind[:min(len(c.Puts[i].Kind), store.MaxKind)]
			}
			return m.Apply(ctx, c)
		}}
	}, nil},
	{"takes a negative Expires", "Refused changes", func(m *memstore.Store) store.Store {
		return &broken{Store: m, apply: func(ctx context.Context, c *store.Change) (store.Commit, error) {
			c = clone(c)
			for i := range c.Puts {
				c.Puts[i].Expires = max(c.Puts[i].Expires, 0)
			}
			return m.Apply(ctx, c)
		}}
	}, nil},
	{"mends selectors that are not UTF-8", "Refused changes", func(m *memstore.Store) store.Store {
		return &broken{Store: m, apply: func(ctx context.Context, c *store.Change) (store.Commit, error) {
			c = clone(c)
			for i := range c.Events {
				c.Events[i].Subject = strings.ToValidUTF8(c.Events[i].Subject, "?")
			}
			return m.Apply(ctx, c)
		}}
	}, nil},
	{"lets what is selected by change", "Refused changes", func(m *memstore.Store) store.Store {
		return &broken{Store: m, apply: func(ctx context.Context, c *store.Change) (store.Commit, error) {
			c = clone(c)
			for i := range c.Puts {
				if old, err := m.Get(ctx, c.Puts[i].Kind, c.Puts[i].ID); err == nil {
					c.Puts[i].Subject = old.Subject
				}
			}
			return m.Apply(ctx, c)
		}}
	}, nil},
	{"calls what is invalid unknown", "Refused changes", func(m *memstore.Store) store.Store {
		return &broken{Store: m, apply: func(ctx context.Context, c *store.Change) (store.Commit, error) {
			commit, err := m.Apply(ctx, c)
			if errors.Is(err, store.ErrInvalid) {
				err = errors.New("the engine failed")
			}
			return commit, err
		}}
	}, nil},
	{"cuts long selectors", "Limits of text", func(m *memstore.Store) store.Store {
		return &broken{Store: m, apply: func(ctx context.Context, c *store.Change) (store.Commit, error) {
			c = clone(c)
			for i := range c.Puts {
				c.Puts[i].Token = c.Puts[i].Token[:min(len(c.Puts[i].Token), 256)]
			}
			return m.Apply(ctx, c)
		}}
	}, nil},
	{"lists a kind that cannot be", "Refused queries", func(m *memstore.Store) store.Store {
		return &broken{Store: m, list: func(ctx context.Context, q store.Query) (store.Page, error) {
			p, err := m.List(ctx, q)
			if errors.Is(err, store.ErrInvalid) {
				err = nil
			}
			return p, err
		}}
	}, nil},
	{"fails at a selector that cannot be", "Refused queries", func(m *memstore.Store) store.Store {
		return &broken{Store: m, list: func(ctx context.Context, q store.Query) (store.Page, error) {
			if strings.Contains(q.Subject, "\x00") {
				return store.Page{}, errors.New("invalid byte sequence")
			}
			return m.List(ctx, q)
		}}
	}, nil},
	{"takes Limit 0 as one record", "Limits of a page", func(m *memstore.Store) store.Store {
		return &broken{Store: m, list: func(ctx context.Context, q store.Query) (store.Page, error) {
			q.Limit = max(q.Limit, 1)
			return m.List(ctx, q)
		}}
	}, nil},
	{"fills a page as large as asked", "Limits of a page", func(m *memstore.Store) store.Store {
		return &broken{Store: m, list: func(ctx context.Context, q store.Query) (store.Page, error) {
			p, err := m.List(ctx, q)
			for limit := q.Limit; err == nil && p.Cursor != "" && len(p.Records) < limit; {
				var more store.Page
				q.Cursor = p.Cursor
				more, err = m.List(ctx, q)
				p.Records, p.Cursor = append(p.Records, more.Records...), more.Cursor
			}
			return p, err
		}}
	}, nil},
	{"follows nothing for an empty list of kinds", "Edge values", func(m *memstore.Store) store.Store {
		return &broken{Store: m, follow: func(ctx context.Context, p store.Position, ks []store.Kind, max int) (store.View, error) {
			v, err := m.Follow(ctx, p, ks, max)
			if ks != nil && len(ks) == 0 {
				v.Records = nil
			}
			return v, err
		}}
	}, nil},
	{"takes a negative Until as no bound", "Edge values", func(m *memstore.Store) store.Store {
		return &broken{Store: m, list: func(ctx context.Context, q store.Query) (store.Page, error) {
			q.Until = max(q.Until, 0)
			return m.List(ctx, q)
		}}
	}, nil},
	{"removes all for a negative max", "Edge values", func(m *memstore.Store) store.Store {
		return &broken{Store: m, purge: func(ctx context.Context, k store.Kind, before int64, max int) (int, error) {
			if max < 0 {
				max = 1000
			}
			return m.Purge(ctx, k, before, max)
		}}
	}, nil},
	{"shows no more behind the last cursor", "Edge values", func(m *memstore.Store) store.Store {
		seen := map[string]bool{}
		return &broken{Store: m, list: func(ctx context.Context, q store.Query) (store.Page, error) {
			p, err := m.List(ctx, q)
			if q.Kind == store.KindEvent && q.Cursor != "" && !q.Newest {
				p.Records = slices.DeleteFunc(p.Records, func(r store.Record) bool { return seen[r.ID] })
				for _, r := range p.Records {
					seen[r.ID] = true
				}
			}
			return p, err
		}}
	}, nil},
	{"folds the case of ids", "Keys", func(m *memstore.Store) store.Store {
		return &broken{Store: m, get: func(ctx context.Context, k store.Kind, id string) (store.Record, error) {
			r, err := m.Get(ctx, k, strings.ToLower(id))
			r.ID = id
			return r, err
		}}
	}, nil},
	{"gives out its own memory", "Memory given out", func(m *memstore.Store) store.Store {
		kept := map[string]store.Record{}
		return &broken{Store: m, get: func(ctx context.Context, k store.Kind, id string) (store.Record, error) {
			if r, ok := kept[id]; ok {
				return r, nil
			}
			r, err := m.Get(ctx, k, id)
			kept[id] = r
			return r, err
		}}
	}, nil},
	{"keeps the memory it is given", "Memory given in", func(m *memstore.Store) store.Store {
		data := map[string][]byte{}
		return &broken{Store: m, apply: func(ctx context.Context, c *store.Change) (store.Commit, error) {
			for _, p := range c.Puts {
				data[strings.Clone(string(p.Kind)+p.ID)] = p.Data
			}
			return m.Apply(ctx, c)
		}, get: func(ctx context.Context, k store.Kind, id string) (store.Record, error) {
			r, err := m.Get(ctx, k, id)
			r.Data = slices.Clone(data[string(k)+id])
			return r, err
		}}
	}, nil},
	{"follows in order of id", "Follow", func(m *memstore.Store) store.Store {
		return &broken{Store: m, follow: func(ctx context.Context, p store.Position, ks []store.Kind, max int) (store.View, error) {
			v, err := m.Follow(ctx, p, ks, max)
			slices.SortFunc(v.Records, func(a, b store.Record) int { return strings.Compare(a.ID, b.ID) })
			return v, err
		}}
	}, nil},
	{"leaves a gap between pages of Follow", "Follow in pages", func(m *memstore.Store) store.Store {
		return &broken{Store: m, follow: func(ctx context.Context, p store.Position, ks []store.Kind, max int) (store.View, error) {
			v, err := m.Follow(ctx, p, ks, max+1)
			if len(v.Records) > max {
				v.Records, v.More = v.Records[:max], true
			}
			return v, err
		}}
	}, nil},
	{"follows a replica that lags", "Follow while others write", func(m *memstore.Store) store.Store {
		var mu sync.Mutex
		var calls int
		var head store.Position
		return &broken{Store: m, follow: func(ctx context.Context, p store.Position, ks []store.Kind, limit int) (store.View, error) {
			v, err := m.Follow(ctx, p, ks, limit)
			mu.Lock()
			defer mu.Unlock()
			if calls++; calls%8 == 1 {
				head = v.Next
				return v, err
			}
			if p.N > head.N {
				v.Records, v.Next, v.More = nil, p, false
				return v, err
			}
			v.Records = slices.DeleteFunc(v.Records, func(r store.Record) bool { return r.Pos.N > head.N })
			v.Next, v.More = store.Position{History: v.Next.History, N: max(head.N, p.N)}, false
			return v, err
		}}
	}, nil},
	{"hides that it lost its history", "Foreign positions", func(m *memstore.Store) store.Store {
		return &broken{Store: m, follow: func(ctx context.Context, p store.Position, ks []store.Kind, max int) (store.View, error) {
			v, err := m.Follow(ctx, p, ks, max)
			if errors.Is(err, store.ErrDiverged) {
				return m.Follow(ctx, store.Position{}, ks, max)
			}
			return v, err
		}}
	}, nil},
	{"tells an old Head", "Head", func(m *memstore.Store) store.Store {
		return &broken{Store: m, apply: func(ctx context.Context, c *store.Change) (store.Commit, error) {
			v, _ := m.Follow(ctx, store.Position{}, nil, 1)
			commit, err := m.Apply(ctx, c)
			commit.Head = v.Next
			return commit, err
		}}
	}, nil},
	{"never wakes", "Wait", func(m *memstore.Store) store.Store { return sleeper{m} }, nil},
	{"shows an event behind a cursor", "Feed while others write", func(m *memstore.Store) store.Store {
		var once sync.Once
		return &broken{Store: m, list: func(ctx context.Context, q store.Query) (store.Page, error) {
			p, err := m.List(ctx, q)
			first := func(r store.Record) bool { return r.ID[0] == '1' }
			if q.Kind == store.KindEvent && !q.Newest && p.Cursor != "" && slices.ContainsFunc(p.Records, first) {
				once.Do(func() { p.Records = slices.DeleteFunc(p.Records, first) })
			}
			return p, err
		}}
	}, nil},
	{"gives no cursor for the rest", "List", func(m *memstore.Store) store.Store {
		return &broken{Store: m, list: func(ctx context.Context, q store.Query) (store.Page, error) {
			p, err := m.List(ctx, q)
			if len(p.Records) < 5 {
				p.Cursor = ""
			}
			return p, err
		}}
	}, nil},
	{"takes Until as the last moment", "List by time", func(m *memstore.Store) store.Store {
		return &broken{Store: m, list: func(ctx context.Context, q store.Query) (store.Page, error) {
			if q.Until > 0 {
				q.Until++
			}
			return m.List(ctx, q)
		}}
	}, nil},
	{"takes ExpiresBefore as the last moment", "List what expires", func(m *memstore.Store) store.Store {
		return &broken{Store: m, list: func(ctx context.Context, q store.Query) (store.Page, error) {
			if q.ExpiresBefore > 0 {
				q.ExpiresBefore++
			}
			return m.List(ctx, q)
		}}
	}, nil},
	{"does not know ExpiresBefore", "List what expires", func(m *memstore.Store) store.Store {
		return &broken{Store: m, list: func(ctx context.Context, q store.Query) (store.Page, error) {
			q.ExpiresBefore = 0
			return m.List(ctx, q)
		}}
	}, nil},
	{"needs one selector of several", "List by selectors", func(m *memstore.Store) store.Store {
		return &broken{Store: m, list: func(ctx context.Context, q store.Query) (store.Page, error) {
			if q.Subject != "" {
				q.Client = ""
			}
			return m.List(ctx, q)
		}}
	}, nil},
	{"makes a page of two snapshots", "List while others write", func(m *memstore.Store) store.Store {
		return &broken{Store: m, list: func(ctx context.Context, q store.Query) (store.Page, error) {
			limit := q.Limit
			q.Limit = 1
			var page store.Page
			for len(page.Records) < limit {
				p, err := m.List(ctx, q)
				if err != nil {
					return page, err
				}
				page.Records, page.Cursor = append(page.Records, p.Records...), p.Cursor
				if q.Cursor = p.Cursor; q.Cursor == "" {
					break
				}
				pause(ctx, 200*time.Microsecond)
			}
			return page, nil
		}}
	}, nil},
	{"purges the living", "Purge", func(m *memstore.Store) store.Store {
		return &broken{Store: m, purge: func(ctx context.Context, k store.Kind, before int64, max int) (int, error) {
			p, _ := m.List(ctx, store.Query{Kind: k, Limit: 1000})
			for _, r := range p.Records {
				if r.Expires > 0 && r.Expires < before {
					r.Expires = 1
					_, _ = m.Apply(ctx, &store.Change{ID: fresh(), Puts: []store.Put{{Record: r, Expect: r.Version}}})
				}
			}
			return m.Purge(ctx, k, before, max)
		}}
	}, nil},
	{"purges more than asked", "Purge", func(m *memstore.Store) store.Store {
		return &broken{Store: m, purge: func(ctx context.Context, k store.Kind, before int64, max int) (int, error) {
			return m.Purge(ctx, k, before, 1000)
		}}
	}, nil},
	{"purges by what it read before", "Purge against revival", func(m *memstore.Store) store.Store {
		return &broken{Store: m, purge: func(ctx context.Context, k store.Kind, before int64, max int) (int, error) {
			p, _ := m.List(ctx, store.Query{Kind: k, Limit: max})
			pause(ctx, 2*time.Millisecond)
			for _, read := range p.Records {
				if r, err := m.Get(ctx, k, read.ID); err == nil {
					r.Expires = 1
					_, _ = m.Apply(ctx, &store.Change{ID: fresh(), Puts: []store.Put{{Record: r, Expect: r.Version}}})
				}
			}
			return m.Purge(ctx, k, before, max)
		}}
	}, nil},
	{"tells Follow of a purge", "Purge of state", func(m *memstore.Store) store.Store {
		return &broken{Store: m, follow: func(ctx context.Context, p store.Position, ks []store.Kind, max int) (store.View, error) {
			v, err := m.Follow(ctx, store.Position{}, ks, max)
			if err == nil && len(v.Records) > 0 && !v.More {
				v.Next.N = v.Records[len(v.Records)-1].Pos.N // the head is what is left of the records
			}
			if p.N > v.Next.N {
				return store.View{}, store.ErrDiverged
			}
			v.Records = slices.DeleteFunc(v.Records, func(r store.Record) bool { return r.Pos.N <= p.N })
			return v, err
		}}
	}, nil},
	{"goes on from a cursor that was purged", "Purge of events", func(m *memstore.Store) store.Store {
		return &broken{Store: m, list: func(ctx context.Context, q store.Query) (store.Page, error) {
			p, err := m.List(ctx, q)
			if errors.Is(err, store.ErrTrimmed) {
				q.Cursor = ""
				return m.List(ctx, q)
			}
			return p, err
		}}
	}, nil},
	{"stamps with the caller's clock", "Stamps", func(m *memstore.Store) store.Store {
		given := map[string]int64{}
		return &broken{Store: m, apply: func(ctx context.Context, c *store.Change) (store.Commit, error) {
			for _, p := range c.Puts {
				given[string(p.Kind)+p.ID] = p.Written
			}
			return m.Apply(ctx, c)
		}, get: func(ctx context.Context, k store.Kind, id string) (store.Record, error) {
			r, err := m.Get(ctx, k, id)
			r.Written = given[string(k)+id]
			return r, err
		}}
	}, nil},
	{"writes half of what a caller gave up on", "Cancelled during", func(m *memstore.Store) store.Store {
		return &broken{Store: m, apply: func(ctx context.Context, c *store.Change) (store.Commit, error) {
			pause(context.WithoutCancel(ctx), 300*time.Microsecond)
			if ctx.Err() == nil {
				return m.Apply(ctx, c)
			}
			_, _ = m.Apply(context.WithoutCancel(ctx), &store.Change{ID: c.ID, Puts: c.Puts})
			return store.Commit{}, ctx.Err()
		}}
	}, nil},
	{"ends an id at a NUL", "Refused changes", func(m *memstore.Store) store.Store {
		return &broken{Store: m, apply: func(ctx context.Context, c *store.Change) (store.Commit, error) {
			c = clone(c)
			for i := range c.Puts {
				if id, _, nul := strings.Cut(c.Puts[i].ID, "\x00"); nul && id != "" {
					c.Puts[i].ID = id
				}
			}
			return m.Apply(ctx, c)
		}}
	}, nil},
	{"calls what was done not done once it has moved", "Read only", func(m *memstore.Store) store.Store { return &moved{Store: m} }, nil},
	{"lets a later Change win by its time", "One of many wins", func(m *memstore.Store) store.Store {
		return &broken{Store: m, apply: ignoreExpect(m)}
	}, nil},
	{"finds the records of another namespace", namespaces, func(m *memstore.Store) store.Store {
		other := m.Namespace("other")
		return &broken{Store: other, get: func(ctx context.Context, k store.Kind, id string) (store.Record, error) {
			if r, err := other.Get(ctx, k, id); err == nil {
				return r, nil
			}
			return m.Get(ctx, k, id)
		}}
	}, nil},
	{"shares its events between namespaces", namespaces, func(m *memstore.Store) store.Store {
		other := m.Namespace("other")
		return &broken{Store: other, list: func(ctx context.Context, q store.Query) (store.Page, error) {
			if q.Kind == store.KindEvent {
				return m.List(ctx, q)
			}
			return other.List(ctx, q)
		}}
	}, nil},
	{"purges all namespaces", namespaces, func(m *memstore.Store) store.Store {
		return &broken{Store: m.Namespace("other"), purge: m.Purge}
	}, nil},
	{"forgets though it can be closed", "Open again", func(m *memstore.Store) store.Store { return closer{m} }, nil},
}

// ignoreExpect writes whatever the versions are.
func ignoreExpect(m *memstore.Store) func(context.Context, *store.Change) (store.Commit, error) {
	return func(ctx context.Context, c *store.Change) (store.Commit, error) {
		for c = clone(c); ; {
			commit, err := m.Apply(ctx, c)
			if !errors.Is(err, store.ErrConflict) {
				return commit, err
			}
			for i := range c.Puts {
				r, _ := m.Get(ctx, c.Puts[i].Kind, c.Puts[i].ID)
				c.Puts[i].Expect = r.Version
			}
		}
	}
}

// eventsAgain recognises the records of a retry, but not its events.
func eventsAgain(m *memstore.Store) func(context.Context, *store.Change) (store.Commit, error) {
	return func(ctx context.Context, c *store.Change) (store.Commit, error) {
		commit, err := m.Apply(ctx, &store.Change{ID: c.ID, Puts: c.Puts})
		if err != nil || len(c.Events) == 0 {
			return commit, err
		}
		return m.Apply(ctx, &store.Change{ID: c.ID, Events: c.Events})
	}
}

// broken is a good store some of whose verbs are replaced.
type broken struct {
	*memstore.Store
	get    func(context.Context, store.Kind, string) (store.Record, error)
	apply  func(context.Context, *store.Change) (store.Commit, error)
	follow func(context.Context, store.Position, []store.Kind, int) (store.View, error)
	list   func(context.Context, store.Query) (store.Page, error)
	purge  func(context.Context, store.Kind, int64, int) (int, error)
}

func (b *broken) Get(ctx context.Context, k store.Kind, id string) (store.Record, error) {
	if b.get == nil {
		return b.Store.Get(ctx, k, id)
	}
	return b.get(ctx, k, id)
}

func (b *broken) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	if b.apply == nil {
		return b.Store.Apply(ctx, c)
	}
	return b.apply(ctx, c)
}

func (b *broken) Follow(ctx context.Context, p store.Position, ks []store.Kind, max int) (store.View, error) {
	if b.follow == nil {
		return b.Store.Follow(ctx, p, ks, max)
	}
	return b.follow(ctx, p, ks, max)
}

func (b *broken) List(ctx context.Context, q store.Query) (store.Page, error) {
	if b.list == nil {
		return b.Store.List(ctx, q)
	}
	return b.list(ctx, q)
}

func (b *broken) Purge(ctx context.Context, k store.Kind, before int64, max int) (int, error) {
	if b.purge == nil {
		return b.Store.Purge(ctx, k, before, max)
	}
	return b.purge(ctx, k, before, max)
}

type sleeper struct{ *memstore.Store }

func (sleeper) Wait(ctx context.Context, _ store.Position) error {
	<-ctx.Done()
	return ctx.Err()
}

// moved answers ErrReadOnly to a Change that it has done.
type moved struct {
	*memstore.Store
	on bool
}

func (m *moved) SetReadOnly(ctx context.Context, on bool) error {
	m.on = on
	return m.Store.SetReadOnly(ctx, on)
}

func (m *moved) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	if m.on {
		return store.Commit{}, store.ErrReadOnly
	}
	return m.Store.Apply(ctx, c)
}

type brokenCloser struct{ broken }

func (*brokenCloser) Close() error { return nil }

type closer struct{ *memstore.Store }

func (closer) Close() error { return nil }
