package commit

import (
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

// The answers are in the order of the IDs, each with its own error, and no more reads are under way than there is room for.
func TestAllAnswersInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ids []string
		for i := range 3*atOnce + 1 {
			ids = append(ids, strconv.Itoa(i))
		}
		odd := errors.New("odd")
		var now, most atomic.Int64
		began := time.Now()
		got := All(ids, func(id string) (string, error) {
			n := now.Add(1)
			defer now.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			i, _ := strconv.Atoi(id)
			time.Sleep(time.Duration(len(ids)-i) * time.Millisecond) // the last is done first
			if i%2 == 1 {
				return "", odd
			}
			return "record " + id, nil
		})
		assert.EqualValues(t, atOnce, most.Load())
		assert.Less(t, time.Since(began), time.Duration(len(ids)*len(ids)/2/8)*time.Millisecond, "one after the other they take 8 times as long and more")
		for i, a := range got {
			assert.Equal(t, ids[i], a.Of)
			if i%2 == 1 {
				assert.ErrorIs(t, a.Err, odd)
			} else {
				assert.Equal(t, fmt.Sprint("record ", i), a.Got)
				assert.NoError(t, a.Err)
			}
		}
	})
	assert.Empty(t, All(nil, func(string) (int, error) { panic("not called") }))
}

// A store of the host's that panics does so in the goroutine that called: net/http ends the request, and the process lives.
func TestAllPanicsInItsCaller(t *testing.T) {
	assert.PanicsWithValue(t, "broken", func() {
		All([]string{"a", "b", "c"}, func(id string) (int, error) {
			if id == "b" {
				panic("broken")
			}
			return 0, nil
		})
	})
}

// What a list gives comes in its order, its errors in their places; reading ahead ends with its caller.
func TestEachReadsAheadInOrder(t *testing.T) {
	t.Parallel()
	damaged := errors.New("damaged")
	asked := 0
	list := func(yield func(int, error) bool) {
		for i := range 40 {
			asked = i + 1
			var err error
			if i%9 == 5 {
				err = damaged
			}
			if !yield(i, err) {
				return
			}
		}
	}
	i := 0
	for text, err := range Each(list, strconv.Itoa) {
		if i%9 == 5 {
			assert.ErrorIs(t, err, damaged)
			assert.Empty(t, text)
		} else {
			assert.NoError(t, err)
			assert.Equal(t, strconv.Itoa(i), text)
		}
		i++
	}
	assert.Equal(t, 40, i)

	for stop := range 40 {
		n := 0
		for range Each(list, strconv.Itoa) {
			if n == stop {
				break
			}
			n++
		}
		assert.Equal(t, stop, n)
		assert.LessOrEqual(t, asked, stop+atOnce)
	}
}
