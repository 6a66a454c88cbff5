package commit

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
