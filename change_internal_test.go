package apitoken

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	is "github.com/stretchr/testify/require"
)

// The deadline of a commit is a context like any other, for stores that wait for it and for those that only ask.
func TestDeadlineOfACommit(t *testing.T) {
	t.Parallel()
	type key struct{}
	parent := context.WithValue(context.Background(), key{}, "value")
	for name, waits := range map[string]bool{"asked only": false, "waited for": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				begin := func(ctx context.Context) *deadline {
					d := &deadline{parent: ctx, at: time.Now().Add(time.Second)}
					if waits {
						is.NotNil(t, d.Done())
					}
					return d
				}
				d := begin(parent)
				at, ok := d.Deadline()
				is.True(t, ok)
				is.Equal(t, time.Second, time.Until(at))
				is.Equal(t, "value", d.Value(key{}))
				is.NoError(t, d.Err())
				child, cancel := context.WithCancel(d)
				defer cancel()
				time.Sleep(time.Second) // the bubble's
				synctest.Wait()
				is.ErrorIs(t, d.Err(), context.DeadlineExceeded)
				is.ErrorIs(t, child.Err(), context.DeadlineExceeded, "what descends from it ends with it")
				d.end()
				is.ErrorIs(t, d.Err(), context.DeadlineExceeded)

				d = begin(parent)
				d.end()
				is.ErrorIs(t, d.Err(), context.Canceled)
				<-d.Done()

				gone, stop := context.WithCancel(parent)
				d = begin(gone)
				stop()
				is.ErrorIs(t, d.Err(), context.Canceled, "the caller's end is its end")
				<-d.Done()
				d.end()
			})
		})
	}
}

func TestTimesOfEvents(t *testing.T) {
	t.Parallel()
	for _, at := range []time.Time{
		time.Unix(0, 0), time.Date(2026, 2, 28, 23, 59, 59, 999_999_999, time.FixedZone("", -3600)), time.Date(9999, 12, 31, 0, 0, 0, 7_000_000, time.UTC),
		time.Date(12345, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC), {},
	} {
		is.Equal(t, at.UTC().Format("2006-01-02T15:04:05.000Z"), string(appendTime(nil, at)))
	}
}
