package commit

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/apitoken-go/apitoken/internal/fault"
)

// The answers are in the order of the IDs, each with its own error, and no more reads are under way than there is room for.
func TestAllAnswersInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ids []string
		for i := range 3*atOnce + 1 {
			ids = append(ids, strconv.Itoa(i))
		}
		odd := fault.Fail(fault.NotFound, "odd")
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

// Of a store that has fallen silent no more is asked than what is under way. A read that ends its goroutine is no answer either.
func TestAllBeginsNoMoreAfterAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := errors.New("no answer")
		asked := atomic.Int64{}
		list := make([]int, 200)
		began := time.Now()
		for _, a := range All(list, func(int) (string, error) {
			asked.Add(1)
			time.Sleep(10 * time.Second)
			return "", silent
		}) {
			assert.ErrorIs(t, a.Err, silent)
		}
		assert.EqualValues(t, atOnce, asked.Load())
		assert.Equal(t, 10*time.Second, time.Since(began))
	})
	for _, a := range All(make([]int, 2), func(int) (string, error) { runtime.Goexit(); return "", nil }) {
		assert.ErrorIs(t, a.Err, errExited)
	}
}
