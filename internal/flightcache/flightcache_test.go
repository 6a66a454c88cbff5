package flightcache

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	is "github.com/stretchr/testify/require"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// reads makes begin of a read that counts its calls.
func reads(n *atomic.Int32, read func() (string, error)) func() (func() (string, error), error) {
	return func() (func() (string, error), error) {
		return func() (string, error) {
			n.Add(1)
			return read()
		}, nil
	}
}

func TestManyCallersShareARead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := New(Config[string, string]{Values: 10})
		var n atomic.Int32
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				v, err := c.Load(t.Context(), "a", noon, reads(&n, func() (string, error) { time.Sleep(time.Second); return "x", nil }))
				is.NoError(t, err)
				is.Equal(t, "x", v)
			})
		}

		// One that leaves takes nobody's read away.
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := c.Load(gone, "a", noon, reads(&n, func() (string, error) { return "x", nil }))
		if err != nil {
			is.ErrorIs(t, err, context.Canceled)
		}
		wg.Wait()
		is.EqualValues(t, 1, n.Load())
	})
}

func TestNothingIsKeptThatChangedWhileItWasRead(t *testing.T) {
	t.Parallel()
	for name, repeat := range map[string]int{"who waited gets it as it was": 0, "it is read again": 3} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := New(Config[string, string]{Values: 10, Repeat: repeat})
			var n atomic.Int32
			v, err := c.Load(t.Context(), "a", noon, reads(&n, func() (string, error) {
				if n.Load() == 1 {
					c.Changed("a")
					return "old", nil
				}
				return "new", nil
			}))
			is.NoError(t, err)
			if repeat == 0 {
				is.Equal(t, "old", v)
				_, ok := c.Get("a")
				is.False(t, ok)
			} else {
				is.Equal(t, "new", v)
				is.EqualValues(t, 2, n.Load())
			}
		})
	}

	c := New(Config[string, string]{Values: 10, Repeat: 3})
	var n atomic.Int32
	_, err := c.Load(t.Context(), "a", noon, reads(&n, func() (string, error) { c.DropAll(nil); return "old", nil }))
	is.ErrorIs(t, err, ErrChanging)
	is.EqualValues(t, 4, n.Load())
}

// A caller that asks after the change never gets what was read before it.
func TestALaterCallerReadsAnew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := New(Config[string, string]{Values: 10})
		var n atomic.Int32
		go c.Load(t.Context(), "a", noon, reads(&n, func() (string, error) { time.Sleep(time.Hour); return "old", nil }))
		synctest.Wait()
		c.DropAll(func(string) bool { return false })
		v, err := c.Load(t.Context(), "a", noon, reads(&n, func() (string, error) { return "new", nil }))
		is.NoError(t, err)
		is.Equal(t, "new", v)
		time.Sleep(2 * time.Hour)
		v, _ = c.Get("a")
		is.Equal(t, "new", v, "the older read landed later")
	})
}

func TestWhatIsAbsentIsNotReadAgainForAWhile(t *testing.T) {
	t.Parallel()
	c := New(Config[string, string]{Values: 2, Absents: 2})
	none := errors.New("none")
	var n atomic.Int32
	read := reads(&n, func() (string, error) { return "", &Absent{Err: none, Until: noon.Add(time.Minute)} })
	for range 2 {
		_, err := c.Load(t.Context(), "a", noon, read)
		is.Equal(t, none, err)
	}
	is.EqualValues(t, 1, n.Load())
	_, _ = c.Load(t.Context(), "a", noon.Add(time.Minute), read)
	is.EqualValues(t, 2, n.Load())
	c.Changed("a")
	_, _ = c.Load(t.Context(), "a", noon, read)
	is.EqualValues(t, 3, n.Load(), "it may be there now")
	_, _ = c.Load(t.Context(), "a", noon.Add(-time.Hour), read)
	is.EqualValues(t, 4, n.Load(), "a clock that is set back holds nothing up")

	// Other errors are kept from nobody.
	down := errors.New("down")
	for range 2 {
		_, err := c.Load(t.Context(), "b", noon, reads(&n, func() (string, error) { return "", down }))
		is.Equal(t, down, err)
	}
	is.EqualValues(t, 6, n.Load())
}

func TestACacheStaysBounded(t *testing.T) {
	t.Parallel()
	c := New(Config[int, int]{Values: 3, Absents: 2, Shard: func(k int) byte { return byte(k) }})
	for k := range 64 * 20 {
		_, err := c.Load(t.Context(), k, noon, func() (func() (int, error), error) {
			return func() (int, error) {
				if k/64%2 == 0 {
					return 0, &Absent{Err: context.Canceled, Until: noon.Add(time.Hour)}
				}
				return k, nil
			}, nil
		})
		is.Equal(t, k/64%2 == 0, err != nil)
	}
	for i := range c.shards {
		is.Len(t, c.shards[i].values, 3)
		is.Len(t, c.shards[i].absent, 2)
		is.Empty(t, c.shards[i].flights)
	}
}

func TestAValueThatIsNotFreshIsReadAgain(t *testing.T) {
	t.Parallel()
	c := New(Config[string, time.Time]{Values: 2, Fresh: func(v, now time.Time) bool { return now.Before(v) }})
	begun := 0
	load := func(now time.Time) error {
		_, err := c.Load(t.Context(), "a", now, func() (func() (time.Time, error), error) {
			begun++
			return func() (time.Time, error) { return now.Add(time.Minute), nil }, nil
		})
		return err
	}
	is.NoError(t, load(noon))
	is.NoError(t, load(noon))
	is.Equal(t, 1, begun)
	is.NoError(t, load(noon.Add(time.Minute)))
	is.Equal(t, 2, begun)

	// A failed read leaves what is known of it to Get.
	_, err := c.Load(t.Context(), "a", noon.Add(time.Hour), func() (func() (time.Time, error), error) { return nil, context.Canceled })
	is.Equal(t, context.Canceled, err)
	_, ok := c.Get("a")
	is.True(t, ok)
}

func TestAPanicReachesWhoAsked(t *testing.T) {
	t.Parallel()
	c := New(Config[string, string]{})
	var n atomic.Int32
	is.PanicsWithValue(t, "host", func() {
		_, _ = c.Load(context.Background(), "a", noon, reads(&n, func() (string, error) { panic("host") }))
	})
	v, err := c.Load(t.Context(), "a", noon, reads(&n, func() (string, error) { return "x", nil }))
	is.NoError(t, err)
	is.Equal(t, "x", v)
	_, ok := c.Get("a")
	is.False(t, ok, "it keeps nothing")
}

func TestCloseWaitsForReads(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := New(Config[string, string]{Values: 2})
		var n atomic.Int32
		var landed atomic.Bool
		go c.Load(t.Context(), "a", noon, reads(&n, func() (string, error) { time.Sleep(time.Second); landed.Store(true); return "x", nil }))
		synctest.Wait()
		c.Close()
		is.True(t, landed.Load())
		_, err := c.Load(t.Context(), "b", noon, reads(&n, func() (string, error) { return "", nil }))
		is.ErrorIs(t, err, ErrClosed)
		v, err := c.Load(t.Context(), "a", noon, nil)
		is.NoError(t, err)
		is.Equal(t, "x", v)
	})
}
