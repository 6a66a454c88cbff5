package apitoken_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
)

// laterFunc is an Auditor.
type laterFunc func(context.Context, apitoken.Event) error

func (f laterFunc) Audit(ctx context.Context, e apitoken.Event) error { return f(ctx, e) }

func TestFeedAttachesASinkLater(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	_, err := svc.Issue(t.Context(), apitoken.Request{Subject: "alice"})
	require.NoError(t, err)
	got := make(chan apitoken.Event, 16)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	sink := apitoken.Sink{Name: "later", Auditor: laterFunc(func(_ context.Context, e apitoken.Event) error { got <- e; return nil })}
	go func() { ended <- svc.Feed(ctx, sink) }()
	next := func(want event.Type) apitoken.Event {
		for {
			select {
			case e := <-got:
				if e.Type == want {
					return e
				}
			case <-time.After(10 * time.Second):
				require.FailNow(t, "the feed gave no "+string(want))
			}
		}
	}
	next(event.Issued)

	origin := apitoken.Origin{UserAgent: "probe"}
	require.NoError(t, svc.Alert(apitoken.WithOrigin(ctx, origin), apitoken.Event{Reason: "host's own", Subject: "alice", Actor: "guard"}))
	e := next(event.Alert)
	assert.Equal(t, "host's own", e.Reason)
	assert.Equal(t, "guard", e.Actor)
	assert.Equal(t, "probe", e.UserAgent)
	assert.NotEmpty(t, e.ID)

	cancel()
	require.NoError(t, <-ended, "the end of the context is no error")
	for _, bad := range []apitoken.Sink{{Name: "later"}, {Auditor: sink.Auditor}, {Name: "later", Auditor: sink.Auditor, MaxLag: time.Minute}} {
		assert.ErrorIs(t, svc.Feed(t.Context(), bad), apitoken.ErrInvalidRequest)
	}
	go func() { ended <- svc.Feed(t.Context(), sink) }()
	require.NoError(t, svc.Close())
	assert.ErrorIs(t, <-ended, apitoken.ErrUnavailable, "it ends with the service")
}

func TestObserversLearnWhoWasRefused(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	var mu sync.Mutex
	var seen []apitoken.Observation
	defer svc.Observe(watcherFunc(func(o apitoken.Observation) {
		if o.Op == "feed" || o.Op == "keys" {
			return // of the service's own goroutines, at any time
		}
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, o)
	}))()
	i, err := svc.Issue(t.Context(), apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	last := func() apitoken.Observation {
		mu.Lock()
		defer mu.Unlock()
		return seen[len(seen)-1]
	}

	for range 2 { // the first and the short way
		_, err = svc.Validate(t.Context(), apitoken.Bearer(i.Access.Reveal()))
		require.NoError(t, err)
		assert.Equal(t, "alice", last().Token.Subject())
	}
	assert.True(t, last().Hit)
	_, err = apitoken.Authorize(t.Context(), svc, apitoken.Bearer(i.Access.Reveal()), apitoken.AllOf("orders:write"))
	require.ErrorIs(t, err, apitoken.ErrInsufficientScope)
	assert.Equal(t, "authorize", last().Op)
	assert.Equal(t, i.Token.ID(), last().Token.ID())
	assert.ErrorIs(t, last().Err, apitoken.ErrInsufficientScope)

	require.NoError(t, svc.Revoke(t.Context(), apitoken.ByToken(i.Token.ID()), "test"))
	_, err = svc.Validate(t.Context(), apitoken.Bearer(i.Access.Reveal()))
	require.ErrorIs(t, err, apitoken.ErrRevoked)
	assert.Equal(t, i.Token.ID(), last().Token.ID(), "a token that was verified and refused is named")
	text := i.Access.Reveal()
	_, err = svc.Validate(t.Context(), apitoken.Bearer(text[:len(text)-4]+"AAAA"))
	require.ErrorIs(t, err, apitoken.ErrInvalidToken)
	assert.True(t, last().Token.IsZero(), "one that was not verified is not")

	_, err = svc.Clients.Authenticate(t.Context(), apitoken.ClientAuth{ID: "shop", Secret: apitoken.NewSecret("x")})
	require.ErrorIs(t, err, apitoken.ErrInvalidClient)
	assert.Equal(t, "authenticate", last().Op)
	assert.Equal(t, "shop", last().Client)

	n := 0
	for e, err := range svc.Events(t.Context(), apitoken.EventQuery{Type: event.Refused}) {
		require.NoError(t, err)
		if e.Reason == "scope" {
			n += e.Count
			assert.Equal(t, "alice", e.Subject)
		}
	}
	assert.Equal(t, 1, n, "a 403 is counted among the refusals")
}

type watcherFunc func(apitoken.Observation)

func (f watcherFunc) Observe(_ context.Context, o apitoken.Observation) { f(o) }
