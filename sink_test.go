package apitoken_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// counted is an auditor that counts what it took, by event.
type counted struct {
	mu    sync.Mutex // guards all below
	calls int
	got   map[string]int
	audit func(ctx context.Context, call int) error // nil: it takes everything
}

func (a *counted) Audit(ctx context.Context, e apitoken.Event) error {
	a.mu.Lock()
	a.calls++
	n := a.calls
	a.mu.Unlock()
	if a.audit != nil {
		if err := a.audit(ctx, n); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.got == nil {
		a.got = map[string]int{}
	}
	a.got[e.ID]++
	return nil
}

// took returns how many events it took, and how often the most frequent of them.
func (a *counted) took() (events, most int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range a.got {
		most = max(most, n)
	}
	return len(a.got), most
}

// work takes a while, or until ctx ends.
func work(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fill makes a log of at least n events.
func fill(t *testing.T, st store.Store, n int) int {
	svc := serviceOn(t, st, nil)
	for range n {
		issue(t, svc, apitoken.Request{Subject: "alice"})
	}
	return len(events(t, svc, apitoken.EventQuery{}))
}

// A sink whose calls fail now and then gets through the log, and gets nothing twice that it took.
func TestSinkThatFailsNowAndThen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := memstore.New()
		all := fill(t, st, 450)
		a := &counted{audit: func(_ context.Context, call int) error {
			if call%20 == 0 {
				return errors.New("connection reset")
			}
			return nil
		}}
		serviceOn(t, st, func(c *apitoken.Config) { c.Sinks = []apitoken.Sink{{Name: "siem", Auditor: a}} })
		time.Sleep(time.Minute)
		got, most := a.took()
		require.Equal(t, all, got)
		require.Equal(t, 1, most)
	})
}

// paged takes events by the page.
type paged struct{ counted }

func (a *paged) AuditAll(ctx context.Context, list []apitoken.Event) error {
	a.mu.Lock()
	a.calls++
	n := a.calls
	a.mu.Unlock()
	if a.audit != nil {
		if err := a.audit(ctx, n); err != nil {
			return err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.got == nil {
		a.got = map[string]int{}
	}
	for _, e := range list {
		a.got[e.ID]++
	}
	return nil
}

// An auditor that takes pages gets them: one that refuses a third of the calls is through with hundreds of events in seconds, and gets
// nothing twice that it took.
func TestSinkOfPagesThatFailsOneInThree(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := memstore.New()
		all := fill(t, st, 950)
		a := &paged{counted{audit: func(_ context.Context, call int) error {
			if call%3 == 1 {
				return errors.New("connection reset")
			}
			return nil
		}}}
		serviceOn(t, st, func(c *apitoken.Config) { c.Sinks = []apitoken.Sink{{Name: "siem", Auditor: a}} })
		time.Sleep(10 * time.Second)
		got, most := a.took()
		require.Equal(t, all, got)
		require.Equal(t, 1, most)
		require.Less(t, a.calls, 40, "a call is worth a page")
	})
}

// A sink that needs longer for a page than a lease lasts keeps its lease: no other process feeds it beside.
func TestSlowSinkKeepsItsLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := memstore.New()
		all := fill(t, st, 300)
		var mu sync.Mutex
		at, together := 0, 0
		a := &counted{audit: func(ctx context.Context, _ int) error {
			mu.Lock()
			at++
			together = max(together, at)
			mu.Unlock()
			err := work(ctx, 500*time.Millisecond)
			mu.Lock()
			at--
			mu.Unlock()
			return err
		}}
		with := func(c *apitoken.Config) { c.Sinks = []apitoken.Sink{{Name: "siem", Auditor: a}} }
		serviceOn(t, st, with)
		serviceOn(t, st, with)
		time.Sleep(5 * time.Minute)
		got, most := a.took()
		require.GreaterOrEqual(t, got, all)
		require.Equal(t, 1, most)
		require.Equal(t, 1, together, "one call at a time, of all processes")
	})
}

// A process that dies in the middle of a page leaves a place that is at most half a lease old.
func TestSinkGoesOnWithinAPage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := memstore.New()
		fill(t, st, 190)
		a := &counted{audit: func(ctx context.Context, _ int) error { return work(ctx, time.Second) }}
		dies := &faulty{Store: st}
		serviceOn(t, dies, func(c *apitoken.Config) { c.Sinks = []apitoken.Sink{{Name: "siem", Auditor: a}} })
		time.Sleep(100 * time.Second)
		dies.onApply(func(context.Context, *store.Change) (error, error) { return errEngine, nil })
		took, _ := a.took()
		require.Greater(t, took, 80)
		time.Sleep(time.Minute)
		b := &counted{}
		serviceOn(t, st, func(c *apitoken.Config) { c.Sinks = []apitoken.Sink{{Name: "siem", Auditor: b}} })
		time.Sleep(time.Minute)
		again, _ := b.took()
		require.LessOrEqual(t, again, 190-took+15, "%d were taken by the first process", took)
	})
}

// A service with few events that live only for a while keeps its sinks' places small: what was purged is forgotten.
func TestSinkOfAQuietServiceForgetsWhatWasPurged(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	k := &clock{}
	st := memstore.NewWithClock(k.Now)
	a := &counted{}
	svc := serviceOn(t, st, func(c *apitoken.Config) {
		c.Now, c.KeepEvents = k.Now, time.Hour
		c.Sinks = []apitoken.Sink{{Name: "siem", Auditor: a}}
	})
	place := func() string {
		r, err := st.Get(ctx, "cursor", "siem")
		require.NoError(t, err)
		return string(r.Data)
	}
	all := len(events(t, svc, apitoken.EventQuery{}))
	for range 3 {
		last := ""
		for range 190 {
			issue(t, svc, apitoken.Request{Subject: "alice"})
		}
		for e := range svc.Events(ctx, apitoken.EventQuery{}) {
			last = e.ID
			break
		}
		all += 190
		require.Eventually(t, func() bool { n, _ := a.took(); return n == all && strings.Contains(place(), last) }, 30*time.Second, 5*time.Millisecond)
		k.Advance(61 * time.Minute)
		_, err := st.Purge(ctx, store.KindEvent, k.Now().UnixMilli(), 1000)
		require.NoError(t, err)
	}
	issue(t, svc, apitoken.Request{Subject: "alice"})
	require.Eventually(t, func() bool { n, _ := a.took(); return n == all+1 && len(place()) < 1<<10 }, 30*time.Second, 5*time.Millisecond)
	_, most := a.took()
	require.Equal(t, 1, most)
}
