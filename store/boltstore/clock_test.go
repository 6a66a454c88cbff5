package boltstore

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
)

// fakeTime has a wall clock that can be set and a monotonic one that only goes on.
type fakeTime struct {
	mu   sync.Mutex
	wall time.Time
	mono time.Duration
}

func (f *fakeTime) clock() *clock {
	return newClock(
		func() time.Time { f.mu.Lock(); defer f.mu.Unlock(); return f.wall },
		func() time.Duration { f.mu.Lock(); defer f.mu.Unlock(); return f.mono },
	)
}

// pass lets time pass; set moves the wall clock alone.
func (f *fakeTime) pass(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wall, f.mono = f.wall.Add(d), f.mono+d
}

func (f *fakeTime) set(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wall = f.wall.Add(d)
}

const year = 365 * 24 * time.Hour

func TestPurgeBelievesAStepAfterAnHour(t *testing.T) {
	t.Parallel()
	for _, step := range []time.Duration{time.Hour, year} {
		ft := &fakeTime{wall: time.UnixMilli(1.8e12)}
		path, ctx := filepath.Join(t.TempDir(), "tokens.db"), context.Background()
		s, err := open(path, &Options{}, ft.clock())
		require.NoError(t, err)
		p := put(store.KindRule, "a", store.Version{})
		p.Expires = ft.wall.Add(30 * time.Minute).UnixMilli()
		c := must(t, s, []store.Put{p})
		_ = c
		purge := func() int {
			n, err := s.Purge(ctx, store.KindRule, 1<<60, 10)
			require.NoError(t, err)
			return n
		}
		ft.set(step) // forward
		require.Zero(t, purge(), "a clock that has just jumped purges nothing")
		must(t, s, []store.Put{put("grant", "g", store.Version{})}) // and its time gets into the file
		ft.pass(20 * time.Minute)
		require.Zero(t, purge())

		// Restarting is no way around.
		require.NoError(t, s.Close())
		s, err = open(path, &Options{}, ft.clock())
		require.NoError(t, err)
		require.Zero(t, purge())
		ft.set(-step) // and back: the file is now ahead of the clock
		require.NoError(t, s.Close())
		_, err = open(path, &Options{}, ft.clock())
		require.ErrorIs(t, err, ErrClockBehind)
		s, err = open(path, &Options{MaxSkew: -1}, ft.clock())
		require.NoError(t, err)
		r := must(t, s, []store.Put{put("grant", "h", store.Version{})})
		_ = r
		g, err := s.Get(ctx, "grant", "g")
		require.NoError(t, err)
		h, err := s.Get(ctx, "grant", "h")
		require.NoError(t, err)
		require.GreaterOrEqual(t, h.Written, g.Written, "Written never falls")
		require.Zero(t, purge())
		ft.set(step)
		require.Zero(t, purge())
		ft.pass(59 * time.Minute)
		if ft.wall.Sub(time.UnixMilli(p.Expires)) > step { // by now it is dead by the unmoved clock as well
			require.Equal(t, 1, purge())
		} else {
			ft.pass(2 * time.Minute)
			require.Equal(t, 1, purge(), "what has stood for an hour is believed")
		}
		require.NoError(t, s.Close())
	}
}

func TestClockBelief(t *testing.T) {
	t.Parallel()
	ft := &fakeTime{wall: time.UnixMilli(1.8e12)}
	c := ft.clock()
	start := ft.wall.UnixMilli()
	c.trust(start, start)
	ahead := func() time.Duration { // of the belief over the time that really passed
		_, b := c.read()
		return time.Duration(b-start)*time.Millisecond - ft.mono
	}
	require.Zero(t, ahead())
	ft.pass(10 * time.Minute)
	require.Zero(t, ahead())
	ft.set(year)
	require.Zero(t, ahead())
	ft.pass(59 * time.Minute)
	require.Zero(t, ahead())
	ft.pass(time.Minute)
	require.Equal(t, year, ahead(), "an hour after the first reading of it")
	ft.set(-year)
	require.Zero(t, ahead(), "a step back is believed at once")
	ft.set(2 * time.Hour)
	require.Zero(t, ahead())
	ft.pass(30 * time.Minute)
	ft.set(-time.Hour) // one of the two hours stood on
	require.Zero(t, ahead())
	ft.pass(30 * time.Minute)
	require.Equal(t, time.Hour, ahead(), "what every reading of an hour supports")
	for range 10_000 { // a clock that keeps climbing costs no memory
		ft.set(2 * time.Second)
		ahead()
	}
	require.LessOrEqual(t, len(c.readings), maxTracked)
}

func TestPositionsKeepRising(t *testing.T) {
	t.Parallel()
	ft := &fakeTime{wall: time.UnixMilli(1.8e12)}
	path := filepath.Join(t.TempDir(), "tokens.db")
	s, err := open(path, &Options{}, ft.clock())
	require.NoError(t, err)
	defer s.Close()
	var last store.Commit
	for i, step := range []time.Duration{0, time.Second, -time.Hour, -year, year, time.Hour} {
		ft.set(step)
		c, err := s.Apply(context.Background(), &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, string(rune('a'+i)), store.Version{})}})
		require.NoError(t, err)
		require.Greater(t, c.Head.N, last.Head.N)
		require.GreaterOrEqual(t, c.Now, last.Now)
		require.GreaterOrEqual(t, c.Head.N, ft.wall.UnixMilli()<<16)
		last = c
	}
}

// TestTimePassesBehindAStepBack: the store's clock does not go back, and it does not stand still either until the wall
// clock has caught up, for whatever is measured by it, the grace window of a refresh token, would not end.
func TestTimePassesBehindAStepBack(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, step := range []time.Duration{2 * time.Second, time.Hour, year} {
		ft := &fakeTime{wall: time.UnixMilli(1.8e12)}
		path := filepath.Join(t.TempDir(), "tokens.db")
		s, err := open(path, &Options{}, ft.clock())
		require.NoError(t, err)
		write := func() int64 {
			id := newVersion()
			c, err := s.Apply(ctx, &store.Change{ID: id, Puts: []store.Put{put("grant", fmt.Sprintf("%x", id), store.Version{})}})
			require.NoError(t, err)
			return c.Now
		}
		now := func() int64 {
			v, err := s.Follow(ctx, store.Position{}, nil, 1)
			require.NoError(t, err)
			return v.Now
		}
		write()
		ft.set(step)
		last := write()
		ft.set(-step)
		require.GreaterOrEqual(t, now(), last, "it does not go back")
		written := write()
		require.GreaterOrEqual(t, written, last)
		ft.pass(time.Second)
		require.Greater(t, now(), written, "it goes on")
		ft.pass(119 * time.Second)
		require.GreaterOrEqual(t, now()-written, time.Minute.Milliseconds(), "a minute takes two at most")
		for range 100 { // written or read, often or seldom
			ft.pass(1200 * time.Millisecond)
			write()
		}
		require.GreaterOrEqual(t, now()-written, 2*time.Minute.Milliseconds())
		ft.pass(2 * step)
		require.Equal(t, ft.wall.UnixMilli(), now(), "and the wall clock catches up with it")
		require.NoError(t, s.Close())
	}
}
