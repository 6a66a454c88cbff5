package oauthhttp_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
)

func TestADeviceGetsTokens(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := newSite(t, nil)
	s.public("tv", nil)
	s.public("other", nil)
	s.client("service", func(c *apitoken.Client) {
		c.GrantTypes, c.MayImpersonate = []string{"client_credentials"}, false
	})
	start := func() *answer {
		return s.post("/device_authorization", params("client_id", "tv", "scope", "orders:read")).ok()
	}
	a := start()
	require.Equal(t, testIssuer+"/device", a.text("verification_uri"))
	require.Equal(t, testIssuer+"/device?user_code="+a.text("user_code"), a.text("verification_uri_complete"))
	require.EqualValues(t, 600, a.body["expires_in"])
	require.EqualValues(t, 5, a.body["interval"])
	require.Regexp(t, `^[B-Z]{4}-[B-Z]{4}$`, a.text("user_code"))
	poll := func(a *answer, pairs ...string) *answer {
		return s.token(merge(params("grant_type", "urn:ietf:params:oauth:grant-type:device_code", "client_id", "tv", "device_code", a.text("device_code")), pairs...))
	}
	poll(a).refused(400, "authorization_pending")
	poll(a).refused(400, "slow_down", "RFC 8628 §3.5")
	s.at.Advance(6 * time.Second)
	poll(a).refused(400, "slow_down", "5 s more than before")
	s.at.Advance(16 * time.Second)
	poll(a).refused(400, "authorization_pending")
	poll(a, "client_id", "other").refused(400, "invalid_grant", "another client's")
	poll(a, "device_code", "unknown").refused(400, "invalid_grant")
	poll(a, "device_code", "").refused(400, "invalid_request")

	d, err := s.h.Device(ctx, strings.ToLower(strings.ReplaceAll(a.text("user_code"), "-", " ")))
	require.NoError(t, err, "however people type it")
	require.Equal(t, "tv", d.Client.ID)
	require.Equal(t, apitoken.Scopes{"orders:read"}, d.Scopes)
	require.Equal(t, a.text("user_code"), d.UserCode)
	require.NoError(t, s.h.ApproveDevice(ctx, d, oauthhttp.Approval{Subject: "alice", Scopes: oauthhttp.All()}))
	require.NoError(t, s.h.ApproveDevice(ctx, d, oauthhttp.Approval{Subject: "alice", Scopes: oauthhttp.All()}), "her answer may have been lost")
	require.ErrorIs(t, s.h.ApproveDevice(ctx, d, oauthhttp.Approval{Subject: "mallory", Scopes: oauthhttp.All()}), apitoken.ErrInvalidRequest, "decided")
	require.ErrorIs(t, s.h.DenyDevice(ctx, d), apitoken.ErrInvalidRequest)
	_, err = s.h.Device(ctx, a.text("user_code"))
	require.ErrorIs(t, err, apitoken.ErrNotFound, "nobody waits for it any more")
	pair := poll(a).ok()
	require.Equal(t, "alice", claims(t, pair.text("access_token"))["sub"])
	require.NotEmpty(t, pair.text("refresh_token"))
	again := poll(a).ok() // its answer may have been lost (RFC 8628 §3.5)
	require.Equal(t, pair.text("refresh_token"), again.text("refresh_token"))
	require.Equal(t, claims(t, pair.text("access_token")), claims(t, again.text("access_token")))
	s.at.Advance(time.Minute)
	poll(a).refused(400, "invalid_grant", "used again, too late")
	_, err = s.svc.Validate(ctx, apitoken.Bearer(pair.text("access_token")))
	require.ErrorIs(t, err, apitoken.ErrRevoked, "which ends what the first use got")

	b := start()
	d, err = s.h.Device(ctx, b.text("user_code"))
	require.NoError(t, err)
	require.NoError(t, s.h.DenyDevice(ctx, d))
	poll(b).refused(400, "access_denied")

	c := start()
	d, err = s.h.Device(ctx, c.text("user_code"))
	require.NoError(t, err)
	s.at.Advance(11 * time.Minute)
	poll(c).refused(400, "expired_token")
	_, err = s.h.Device(ctx, c.text("user_code"))
	require.ErrorIs(t, err, apitoken.ErrNotFound)
	require.ErrorIs(t, s.h.ApproveDevice(ctx, d, oauthhttp.Approval{Subject: "alice", Scopes: oauthhttp.All()}), apitoken.ErrNotFound)

	s.post("/device_authorization", params("client_id", "tv", "scope", "admin")).refused(400, "invalid_scope")
	s.post("/device_authorization", params("client_id", "tv", "resource", "https://x.example.com")).refused(400, "invalid_target")
	s.post("/device_authorization", nil).refused(401, "invalid_client")
	s.post("/device_authorization", nil, s.as("service")).refused(400, "unauthorized_client")

	k := newSigner(t)
	e := start()
	d, err = s.h.Device(ctx, e.text("user_code"))
	require.NoError(t, err)
	require.ErrorIs(t, s.h.ApproveDevice(ctx, d, oauthhttp.Approval{Subject: "alice", Scopes: oauthhttp.Only("orders:write")}), apitoken.ErrInvalidScope, "more than was asked for")
	require.NoError(t, s.h.ApproveDevice(ctx, d, oauthhttp.Approval{Subject: "alice", Scopes: oauthhttp.All()}), "a refused approval decides nothing")
	bound := s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:device_code", "client_id", "tv", "device_code", e.text("device_code")), s.dpop(k, nil)).ok()
	require.Equal(t, "DPoP", bound.text("token_type"))
	require.ErrorIs(t, s.h.DenyDevice(ctx, nil), apitoken.ErrInvalidRequest)
}

// A device that asks again because its answer was lost gets what it was given, until the answer is known to have arrived: whoever uses
// the code after that has a copy.
func TestADeviceWhoseAnswerWasLostAsksAgain(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for name, change := range map[string]func(*apitoken.Config, *oauthhttp.Options){
		"":              nil,
		"without grace": func(c *apitoken.Config, _ *oauthhttp.Options) { c.Refresh.Grace = -1 },
	} {
		s := newSite(t, change)
		s.public("tv", nil)
		s.public("plain", func(c *apitoken.Client) { c.GrantTypes = []string{"urn:ietf:params:oauth:grant-type:device_code"} })
		k := newSigner(t)
		approved := func(client string) *answer {
			a := s.post("/device_authorization", params("client_id", client, "scope", "orders:read")).ok()
			d, err := s.h.Device(ctx, a.text("user_code"))
			require.NoError(t, err)
			require.NoError(t, s.h.ApproveDevice(ctx, d, oauthhttp.Approval{Subject: "alice", Scopes: oauthhttp.All()}))
			return a
		}
		poll := func(client string, a *answer, opts ...option) *answer {
			return s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:device_code", "client_id", client, "device_code", a.text("device_code")), opts...)
		}
		alive := func(a *answer) error {
			_, err := s.svc.Validate(ctx, apitoken.Bearer(a.text("access_token")))
			return err
		}

		a := approved("tv")
		first := poll("tv", a).ok()
		if name != "" {
			poll("tv", a).refused(400, "invalid_grant", "no answer is given twice")
			require.ErrorIs(t, alive(first), apitoken.ErrRevoked)
			continue
		}
		s.at.Advance(30 * time.Second)
		again := poll("tv", a).ok()
		require.Equal(t, first.text("refresh_token"), again.text("refresh_token"))
		require.InDelta(t, 270, again.body["expires_in"], 1, "what is left of it")
		next := s.token(params("grant_type", "refresh_token", "client_id", "tv", "refresh_token", again.text("refresh_token"))).ok()
		poll("tv", a).refused(400, "invalid_grant", "the answer had arrived")
		require.ErrorIs(t, alive(next), apitoken.ErrRevoked)

		// Without a refresh token, and with a key of its own.
		b := approved("plain")
		bound := poll("plain", b, s.dpop(k, nil)).ok()
		require.Equal(t, claims(t, bound.text("access_token")), claims(t, poll("plain", b, s.dpop(k, nil)).ok().text("access_token")))
		poll("plain", b, s.dpop(newSigner(t), nil)).refused(400, "invalid_grant", "another's key")

		c := approved("tv")
		given := poll("tv", c).ok()
		require.NoError(t, s.svc.Revoke(ctx, apitoken.BySubject("alice"), "left"))
		poll("tv", c).refused(400, "invalid_grant", "revoked meanwhile")
		require.ErrorIs(t, alive(given), apitoken.ErrRevoked)
	}
}

func TestOneDeviceCodeWins(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := newSite(t, nil)
	s.public("tv", nil)
	sites := []*site{s, s.second(nil)}
	a := s.post("/device_authorization", params("client_id", "tv")).ok()
	d, err := s.h.Device(ctx, a.text("user_code"))
	require.NoError(t, err)
	subjects := []string{"alice", "mallory"}
	require.LessOrEqual(t, race(func(i int) bool {
		return sites[i%2].h.ApproveDevice(ctx, d, oauthhttp.Approval{Subject: subjects[i%2], Scopes: oauthhttp.All()}) == nil
	}), 32, "one subject's approvals, never another's")
	v := params("grant_type", "urn:ietf:params:oauth:grant-type:device_code", "client_id", "tv", "device_code", a.text("device_code"))
	var got sync.Map
	require.NotZero(t, race(func(i int) bool {
		x := sites[i%2].token(v)
		if x.StatusCode == 200 {
			got.Store(x.text("refresh_token"), true)
		}
		return x.StatusCode == 200
	}))
	n := 0
	got.Range(func(any, any) bool { n++; return true })
	require.Equal(t, 1, n, "all who were answered were given one session")
}

// A person who presses the button twice, in two processes, is told once and for all that the device is his: no approval
// undoes another, and nobody else may claim what he was promised.
func TestParallelApprovalsOfOnePerson(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := newSite(t, nil)
	s.public("tv", nil)
	sites := []*site{s, s.second(nil)}
	for range 20 {
		a := s.post("/device_authorization", params("client_id", "tv", "scope", "orders:read")).ok()
		d, err := s.h.Device(ctx, a.text("user_code"))
		require.NoError(t, err)
		race(func(i int) bool {
			err := sites[i%2].h.ApproveDevice(ctx, d, oauthhttp.Approval{Subject: "alice", Scopes: oauthhttp.All()})
			if err != nil {
				require.ErrorIs(t, err, apitoken.ErrUnavailable, "come again is all that a racer may hear")
			}
			return err == nil
		})
		require.NoError(t, s.h.ApproveDevice(ctx, d, oauthhttp.Approval{Subject: "alice", Scopes: oauthhttp.All()}), "whoever asks again hears that it is done")
		require.ErrorIs(t, s.h.ApproveDevice(ctx, d, oauthhttp.Approval{Subject: "mallory", Scopes: oauthhttp.All()}), apitoken.ErrInvalidRequest)
		pair := s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:device_code", "client_id", "tv", "device_code", a.text("device_code"))).ok()
		require.Equal(t, "alice", claims(t, pair.text("access_token"))["sub"])
	}
}

func TestADeviceThatComesTooLate(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := newSite(t, nil)
	s.public("tv", nil)
	a := s.post("/device_authorization", params("client_id", "tv")).ok()
	d, err := s.h.Device(ctx, a.text("user_code"))
	require.NoError(t, err)
	require.NoError(t, s.h.ApproveDevice(ctx, d, oauthhttp.Approval{Subject: "alice", Scopes: oauthhttp.All()}))
	s.at.Advance(11 * time.Minute)
	s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:device_code", "client_id", "tv", "device_code", a.text("device_code"))).refused(400, "expired_token", "approved, and not fetched in time (RFC 8628 §3.5)")
}

// A failing store in the middle of an approval leaves it to be done again by the same person.
func TestAnApprovalThatIsRepeated(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := newSite(t, nil)
	s.public("tv", nil)
	a := s.post("/device_authorization", params("client_id", "tv")).ok()
	d, err := s.h.Device(ctx, a.text("user_code"))
	require.NoError(t, err)
	s.st.writes.Store(true)
	require.ErrorIs(t, s.h.ApproveDevice(ctx, d, oauthhttp.Approval{Subject: "alice", Scopes: oauthhttp.All()}), apitoken.ErrUnavailable)
	s.st.writes.Store(false)
	require.NoError(t, s.h.ApproveDevice(ctx, d, oauthhttp.Approval{Subject: "alice", Scopes: oauthhttp.All()}))
	s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:device_code", "client_id", "tv", "device_code", a.text("device_code"))).ok()
}

func TestUserCodesCanNotBeGuessed(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.public("tv", nil)
	a := s.post("/device_authorization", params("client_id", "tv")).ok()
	ctx := apitoken.WithOrigin(context.Background(), apitoken.Origin{Address: netip.MustParseAddr("192.0.2.1")})
	for _, junk := range []string{"", "AAAA-AAAA", "BBBB", "BBBB-BBBB-BBBB", strings.Repeat("B", 100), "ÄÖÜß"} {
		_, err := s.h.Device(ctx, junk)
		require.ErrorIs(t, err, apitoken.ErrNotFound, junk)
	}
	var err error
	for n := 0; n < 60 && !errors.Is(err, apitoken.ErrLimited); n++ { // more than twice the limit: its window may end meanwhile
		_, err = s.h.Device(ctx, "BBBB-BBBB")
	}
	require.ErrorIs(t, err, apitoken.ErrLimited)
	_, err = s.h.Device(ctx, a.text("user_code"))
	require.ErrorIs(t, err, apitoken.ErrLimited, "whoever guesses learns nothing any more")
	_, err = s.h.Device(apitoken.WithOrigin(ctx, apitoken.Origin{Address: netip.MustParseAddr("192.0.2.2")}), a.text("user_code"))
	require.NoError(t, err)
	s.at.Advance(time.Minute)
	for range 60 { // right ones do not count
		_, err = s.h.Device(ctx, a.text("user_code"))
		require.NoError(t, err)
	}
	// All addresses that one network gives to one subscriber are one source, and parallel guesses count like others.
	tries := race(func(i int) bool {
		from := netip.MustParseAddr(fmt.Sprintf("2001:db8:1:2::%x", i+1))
		_, err := s.h.Device(apitoken.WithOrigin(ctx, apitoken.Origin{Address: from}), "BBBB-BBBB")
		return errors.Is(err, apitoken.ErrNotFound)
	})
	require.LessOrEqual(t, tries, 40, "20 in a minute, and another may begin meanwhile")
	seen := map[rune]int{}
	for range 200 {
		for _, c := range s.post("/device_authorization", params("client_id", "tv")).ok().text("user_code") {
			seen[c]++
		}
	}
	require.Len(t, seen, 21, "20 letters and a hyphen")
}
