package apitoken

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	is "github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store/memstore"
)

// However many callers make names up, a client with a chosen secret is the next one whose secret is hashed, and clients take
// turns however many callers name one of them.
func TestClientsComeBeforeMadeUpNames(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &slowPool{free: 1}
		is.NoError(t, p.enter(t.Context(), "x", false))
		order := make(chan string, 1000)
		limited := make(chan error, 1000)
		enter := func(id string, known bool) {
			go func() {
				if err := p.enter(t.Context(), id, known); err != nil {
					limited <- err
					return
				}
				order <- id
				p.leave()
			}()
			synctest.Wait()
		}
		for i := range 256 {
			enter(fmt.Sprint("made up ", i), false)
		}
		for range 3 {
			enter("a", true)
		}
		enter("b", true)
		enter("c", true)
		is.Len(t, limited, 256-maxSlowRest)
		is.ErrorIs(t, <-limited, ErrLimited)

		p.leave()
		synctest.Wait()
		for _, want := range []string{"a", "b", "c", "a", "a", "made up 0"} {
			is.Equal(t, want, <-order)
		}
		is.Len(t, order, maxSlowRest-1)
		is.Equal(t, 1, p.free)
		is.Empty(t, p.lanes)
	})
}

// A caller who stops waiting leaves the queue, or hands the place on.
func TestWhoStopsWaitingHoldsNoPlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &slowPool{free: 1}
		for _, known := range []bool{false, true} {
			is.NoError(t, p.enter(t.Context(), "x", known))
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			is.ErrorIs(t, p.enter(ctx, "y", known), ErrUnavailable)
			is.Empty(t, p.lanes)
			is.Empty(t, p.rest.waiters)
			p.leave()
			is.Equal(t, 1, p.free)
		}
	})
}

// Where no host has chosen a secret, no wrong one is hashed slowly: with every place taken the answer comes all the same.
func TestNoSlowHashWithoutAChosenSecret(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc, err := New(Config{Issuer: "https://a.example.com", Audience: "https://b.example.com", Store: memstore.New(), InsecureKeysInStore: true})
	is.NoError(t, err)
	defer svc.Close()
	c, generated, err := svc.Clients.Create(ctx, Client{})
	is.NoError(t, err)
	is.Equal(t, max(1, runtime.GOMAXPROCS(0)/2), svc.Clients.slow.free)
	for range svc.Clients.slow.free {
		is.NoError(t, svc.Clients.slow.enter(ctx, "x", false))
	}
	try := func(id, secret string) error {
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		_, err := svc.Clients.Authenticate(ctx, ClientAuth{ID: id, Secret: NewSecret(secret)})
		return err
	}
	is.ErrorIs(t, try(c.ID, "no secret of any client"), ErrInvalidClient)
	is.ErrorIs(t, try("made up", "no secret of any client"), ErrInvalidClient)

	is.NoError(t, svc.Clients.Declare(ctx, Client{ID: "batch"}, NewSecret("a secret of the host's choice")))
	is.ErrorIs(t, try("made up", "no secret of any client"), ErrUnavailable, "it looks like a client now")
	is.NoError(t, try(c.ID, generated.Reveal()), "a generated secret waits for nobody")

	is.NoError(t, svc.Clients.Declare(ctx, Client{ID: "batch"}, generated))
	is.ErrorIs(t, try("made up", "no secret of any client"), ErrInvalidClient, "the last chosen secret is gone")
}
