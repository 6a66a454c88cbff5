package apitoken_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
	"github.com/apitoken-go/apitoken/event"
)

const describedID = "https://app.example.com/client.json"

func described(scopes ...apitoken.Scope) apitoken.Client {
	return apitoken.Client{ID: describedID, Name: "App", Public: true, RedirectURIs: []string{"https://app.example.com/cb"}, Scopes: scopes,
		GrantTypes: []string{"authorization_code", "refresh_token"}}
}

func clientEvents(t *testing.T, svc *apitokentest.Service) (reasons []string) {
	t.Helper()
	for e, err := range svc.Events(t.Context(), apitoken.EventQuery{Type: event.ClientChanged, Client: describedID}) {
		require.NoError(t, err)
		reasons = append(reasons, e.Reason)
	}
	return reasons
}

func TestAClientThatDescribesItselfEndsByItself(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	svc := apitokentest.New(t)
	c, err := svc.Clients.Adopt(ctx, described("a"), 10)
	require.NoError(t, err)
	require.Equal(t, svc.Now().Add(time.Hour), c.Expires.UTC())
	require.Equal(t, 1, svc.Clients.Temporary())
	issue := func() error {
		_, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Client: describedID, Scopes: apitoken.Scopes{"a"}, Refresh: true})
		return err
	}
	require.NoError(t, issue())

	_, err = svc.Clients.Adopt(ctx, described("a"), 10)
	require.NoError(t, err)
	require.Equal(t, []string{"described itself"}, clientEvents(t, svc), "what is so already is not written")

	svc.Advance(time.Hour - time.Millisecond)
	require.NoError(t, issue())
	svc.Advance(time.Millisecond)
	require.ErrorIs(t, issue(), apitoken.ErrInvalidClient)
	_, err = svc.Clients.Known(ctx, describedID)
	require.ErrorIs(t, err, apitoken.ErrNotFound)
	_, err = svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: describedID})
	require.ErrorIs(t, err, apitoken.ErrInvalidClient)

	c, err = svc.Clients.Adopt(ctx, described("a"), 10)
	require.NoError(t, err)
	require.Equal(t, svc.Now().Add(time.Hour), c.Expires.UTC(), "it comes back as a new one does")
	require.NoError(t, issue())
}

func TestAClientThatPeopleUseIsKept(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	svc := apitokentest.New(t, func(c *apitoken.Config) { c.Lifetimes.Grant, c.Lifetimes.Idle = 30*24*time.Hour, 30*24*time.Hour })
	_, err := svc.Clients.Adopt(ctx, described("a"), 10)
	require.NoError(t, err)
	require.NoError(t, svc.Clients.Keep(ctx, describedID))
	i, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Client: describedID, Scopes: apitoken.Scopes{"a"}, Refresh: true})
	require.NoError(t, err)
	require.NoError(t, svc.Clients.Keep(ctx, describedID))
	require.ElementsMatch(t, []string{"described itself", "kept"}, clientEvents(t, svc), "once in the life of a grant")
	svc.Advance(30*24*time.Hour - time.Minute)
	_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
	require.NoError(t, err, "it lives for as long as what it got")
	require.NoError(t, svc.Clients.Keep(ctx, describedID))
	require.ElementsMatch(t, []string{"described itself", "kept", "kept"}, clientEvents(t, svc))
	svc.Advance(61 * 24 * time.Hour)
	require.ErrorIs(t, svc.Clients.Keep(ctx, "nobody"), apitoken.ErrNotFound)
	_, err = svc.Issue(ctx, apitoken.Request{Subject: "alice", Client: describedID})
	require.ErrorIs(t, err, apitoken.ErrInvalidClient)
}

func TestWhatTheHostChangesOfAClientStays(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	svc := apitokentest.New(t)
	_, err := svc.Clients.Adopt(ctx, described("a", "b"), 10)
	require.NoError(t, err)
	c, err := svc.Clients.Update(ctx, describedID, func(c *apitoken.Client) error { c.Audiences = []string{apitokentest.Audience}; return nil })
	require.NoError(t, err)
	require.True(t, c.Expires.IsZero())
	require.Zero(t, svc.Clients.Temporary())
	require.NoError(t, svc.Clients.Keep(ctx, describedID))
	c, err = svc.Clients.Adopt(ctx, described("a", "b", "c"), 10)
	require.NoError(t, err)
	require.True(t, c.Expires.IsZero())
	require.Equal(t, []string{apitokentest.Audience}, c.Audiences)
	require.Equal(t, apitoken.Scopes{"a", "b", "c"}, c.Scopes)

	_, err = svc.Clients.Update(ctx, describedID, func(c *apitoken.Client) error { c.Disabled = true; return nil })
	require.NoError(t, err)
	svc.Advance(365 * 24 * time.Hour)
	_, err = svc.Clients.Adopt(ctx, described("a"), 10)
	require.ErrorIs(t, err, apitoken.ErrDenied, "a disabled client cannot come back")
}

func TestADescriptionThatNarrowsReachesTokens(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	svc := apitokentest.New(t)
	_, err := svc.Clients.Adopt(ctx, described("a", "b"), 10)
	require.NoError(t, err)
	i, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Client: describedID, Scopes: apitoken.Scopes{"a", "b"}})
	require.NoError(t, err)
	_, err = svc.Clients.Adopt(ctx, described("a"), 10)
	require.NoError(t, err)
	_, err = svc.Validate(ctx, apitoken.Bearer(i.Access.Reveal()))
	require.ErrorIs(t, err, apitoken.ErrInvalidToken)
}

func TestADescriptionThatIsNotTaken(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	svc := apitokentest.New(t)
	secret := described("a")
	secret.Public = false
	_, err := svc.Clients.Adopt(ctx, secret, 10)
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest, "a secret in a public document")

	_, err = svc.Clients.Adopt(ctx, described("a"), 0)
	require.ErrorIs(t, err, apitoken.ErrLimited)
	_, err = svc.Clients.Adopt(ctx, described("a"), 1)
	require.NoError(t, err)
	_, err = svc.Clients.Adopt(ctx, described("a"), 1)
	require.NoError(t, err, "one that is there already")
	other := described("a")
	other.ID = "https://other.example.com/client.json"
	_, err = svc.Clients.Adopt(ctx, other, 1)
	require.ErrorIs(t, err, apitoken.ErrLimited)

	signs := described("a")
	signs.Public, signs.AuthMethod = false, "private_key_jwt"
	signs.Keys = []byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`)
	_, err = svc.Clients.Adopt(ctx, signs, 10)
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest, "public and confidential do not change")
}
