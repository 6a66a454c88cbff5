package watch_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/watch"
)

type observer func(string)

func (f observer) Observe(_ context.Context, o string) { f(o) }

func op(o string) string { return o }

// An observer is told from Add until stop, and a list without one says so.
func TestAnObserverIsToldUntilItStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, untilItStops)
}

func untilItStops(t *testing.T) {
	var l watch.List[string]
	require.False(t, l.Any())
	l.Observe(t.Context(), "nobody listens")
	l.ObserveWithin(t.Context(), "nobody listens")

	var a, b []string
	stopA := l.Add(observer(func(o string) { a = append(a, o) }))
	stopB := l.Add(observer(func(o string) { b = append(b, o) }))
	require.True(t, l.Any())
	l.Observe(t.Context(), "issue")
	stopA()
	l.ObserveWithin(t.Context(), "refresh")
	require.Equal(t, []string{"issue"}, a)
	require.Equal(t, []string{"issue", "refresh"}, b)

	stopA() // a second time does nothing
	require.True(t, l.Any())
	stopB()
	stopB()
	require.False(t, l.Any())
}

// An observer that panics is logged once, and neither the call nor the observers behind it know of it.
func TestAPanicIsLoggedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, loggedOnce)
}

func loggedOnce(t *testing.T) {
	var out bytes.Buffer
	l := watch.List[string]{Log: slog.New(slog.NewTextHandler(&out, nil)), Op: op}
	told := 0
	l.Add(observer(func(string) { panic("a bug") }))
	l.Add(observer(func(string) { told++ }))
	for range 3 {
		l.Observe(t.Context(), "issue")
		l.ObserveWithin(t.Context(), "issue")
	}
	require.Equal(t, 6, told)
	require.Equal(t, 1, strings.Count(out.String(), "an Observer panicked"), out.String())
	require.Contains(t, out.String(), "op=issue")
}

// An observer that blocks holds up ObserveWithin for a second, however many there are, and 16 of its calls wait at most.
func TestAnObserverThatBlocksCostsASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var l watch.List[string]
		hang := make(chan struct{})
		begun := make(chan struct{}, 100)
		var told atomic.Int32
		for range 3 {
			l.Add(observer(func(string) { begun <- struct{}{}; <-hang }))
		}
		l.Add(observer(func(string) { told.Add(1) }))

		began := time.Now()
		l.ObserveWithin(t.Context(), "issue")
		require.Equal(t, time.Second, time.Since(began))
		for range 30 {
			l.ObserveWithin(t.Context(), "issue")
		}
		synctest.Wait()
		require.Len(t, begun, 3*16, "an observer that blocks misses the rest")
		require.LessOrEqual(t, told.Load(), int32(31))
		close(hang)
		synctest.Wait()
		l.ObserveWithin(t.Context(), "issue")
		require.Len(t, begun, 3*17, "once it comes back it is told again")
	})
}
