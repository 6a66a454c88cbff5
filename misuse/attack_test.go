package misuse

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// house is a service with a Watch on it, whose alerts come out of a channel.
type house struct {
	svc    *apitoken.Service
	watch  *Watch
	alerts chan Alert
}

func newHouse(t *testing.T, c Config, action Action) *house {
	t.Helper()
	svc, err := apitoken.New(apitoken.Config{Issuer: issuer, Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true})
	require.NoError(t, err)
	h := &house{svc: svc, alerts: make(chan Alert, 64)}
	c.Policy = func(_ context.Context, a Alert) Action {
		h.alerts <- a
		return action
	}
	h.watch, err = Start(svc, c)
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, h.watch.Close())
		assert.NoError(t, svc.Close())
	})
	return h
}

func (h *house) alert(t *testing.T) Alert {
	t.Helper()
	select {
	case a := <-h.alerts:
		return a
	case <-time.After(2 * time.Minute): // of a machine that does much else
		require.FailNow(t, "the attack raised no alert")
		return Alert{}
	}
}

// told closes the Watch, so that all is written, and returns the alert events of the log.
func (h *house) told(t *testing.T) []apitoken.Event {
	t.Helper()
	require.NoError(t, h.watch.Close())
	var out []apitoken.Event
	for e, err := range h.svc.Events(t.Context(), apitoken.EventQuery{Type: event.Alert, OldestFirst: true}) {
		require.NoError(t, err)
		out = append(out, e)
	}
	return out
}

func (h *house) issue(t *testing.T, r apitoken.Request) *apitoken.Issued {
	t.Helper()
	if r.Subject == "" && r.Auth.ID == "" {
		r.Subject = "alice"
	}
	r.Scopes = apitoken.Scopes{"orders:read"}
	i, err := h.svc.Issue(t.Context(), r)
	require.NoError(t, err)
	return i
}

func from(ctx context.Context, address, agent string) context.Context {
	return apitoken.WithOrigin(ctx, apitoken.Origin{Address: netip.MustParseAddr(address), UserAgent: agent})
}

func TestAddressesFindsATokenInManyNetworks(t *testing.T) {
	t.Parallel()
	h := newHouse(t, Config{}, RevokeGrant)
	i := h.issue(t, apitoken.Request{Refresh: true})
	for n := range 6 {
		_, err := h.svc.Validate(from(t.Context(), fmt.Sprintf("198.51.%d.9", n), "curl/8.9"), apitoken.Bearer(i.Access.Reveal()))
		require.NoError(t, err)
	}
	a := h.alert(t)
	assert.Equal(t, Addresses, a.Detector)
	assert.True(t, a.Authentic, "only a holder of the token can make this")
	assert.Equal(t, "alice", a.Subject)
	assert.Equal(t, i.Token.ID(), a.Token.ID())
	assert.GreaterOrEqual(t, a.Evidence.Count, 6)
	assert.Equal(t, 6, a.Evidence.Limit)
	assert.Contains(t, a.Evidence.Addresses, netip.MustParseAddr("198.51.5.9"))

	told := h.told(t)
	require.Len(t, told, 1, "each alert stands in the audit log, once")
	assert.Equal(t, "addresses", told[0].Reason)
	assert.Equal(t, "misuse", told[0].Actor)
	assert.Equal(t, apitoken.ByGrant(i.Token.Grant()), told[0].Target)
	assert.Equal(t, "revoke grant", told[0].Extra["action"])
	assert.Equal(t, "done", told[0].Extra["outcome"])
	assert.Contains(t, told[0].Extra["addresses"], "198.51.5.9")
	_, err := h.svc.Validate(t.Context(), apitoken.Bearer(i.Access.Reveal()))
	assert.ErrorIs(t, err, apitoken.ErrRevoked, "the policy asked for the grant's revocation")
}

func TestAddressesJudgesMachinesByTheirOwnMeasure(t *testing.T) {
	t.Parallel()
	h := newHouse(t, Config{}, Tell)
	k, secret, err := h.svc.APIKeys.Create(t.Context(), apitoken.APIKeyRequest{Subject: "batch", Name: "nightly", Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	use := func(lo, hi int) {
		for n := lo; n < hi; n++ {
			_, err := h.svc.Validate(from(t.Context(), fmt.Sprintf("10.%d.%d.9", n/200, n%200), fmt.Sprintf("tool%c/1", 'a'+n%7)), apitoken.Bearer(secret.Reveal()))
			require.NoError(t, err)
		}
	}
	use(0, 12)
	assert.Empty(t, h.alerts, "a dozen machines may share an API key")
	use(12, 60)
	a := h.alert(t)
	assert.Equal(t, Addresses, a.Detector)
	assert.Equal(t, k.ID, a.TokenID)
	assert.Equal(t, 32, a.Evidence.Limit)
}

func TestUserAgentsFindsTwoProgramsAtOnce(t *testing.T) {
	t.Parallel()
	h := newHouse(t, Config{}, RevokeToken)
	i := h.issue(t, apitoken.Request{})
	for n := range 5 {
		agent := "Mozilla/5.0 (iPhone) Safari/605.1"
		if n%2 == 1 {
			agent = "python-requests/2.32"
		}
		_, err := h.svc.Validate(from(t.Context(), "192.0.2.1", agent), apitoken.Bearer(i.Access.Reveal()))
		require.NoError(t, err)
	}
	a := h.alert(t)
	assert.Equal(t, UserAgents, a.Detector)
	assert.True(t, a.Authentic)
	assert.ElementsMatch(t, []string{"Mozilla/5.0 (iPhone) Safari/605.1", "python-requests/2.32"}, a.Evidence.UserAgents)
	require.Len(t, h.told(t), 1)
	_, err := h.svc.Validate(t.Context(), apitoken.Bearer(i.Access.Reveal()))
	assert.ErrorIs(t, err, apitoken.ErrRevoked)
}

func TestReuseTellsOfASpentRefreshToken(t *testing.T) {
	t.Parallel()
	h := newHouse(t, Config{}, RevokeSubject)
	i := h.issue(t, apitoken.Request{Refresh: true})
	other := h.issue(t, apitoken.Request{Refresh: true})
	spent := i.Refresh.Reveal()
	var err error
	for range 3 {
		i, err = h.svc.Refresh(t.Context(), apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
		require.NoError(t, err)
	}
	_, err = h.svc.Refresh(from(t.Context(), "203.0.113.66", "thief"), apitoken.RefreshRequest{Token: spent})
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	a := h.alert(t)
	assert.Equal(t, Reuse, a.Detector)
	assert.True(t, a.Authentic)
	assert.Equal(t, i.Token.Grant(), a.Grant)
	assert.Equal(t, "alice", a.Subject, "the event names whose grant it is")
	assert.NotEmpty(t, a.Evidence.EventID)
	assert.Equal(t, []netip.Addr{netip.MustParseAddr("203.0.113.66")}, a.Evidence.Addresses)
	require.Len(t, h.told(t), 1)
	_, err = h.svc.Validate(t.Context(), apitoken.Bearer(other.Access.Reveal()))
	assert.ErrorIs(t, err, apitoken.ErrRevoked, "the policy ended the subject's other sessions too")
}

func TestARefreshThatIsRepeatedIsNoReuse(t *testing.T) {
	t.Parallel()
	h := newHouse(t, Config{}, RevokeSubject)
	i := h.issue(t, apitoken.Request{Refresh: true})
	for range 3 { // the answer was lost: the client asks again with what it has
		_, err := h.svc.Refresh(t.Context(), apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
		require.NoError(t, err)
	}
	_, err := h.svc.Refresh(t.Context(), apitoken.RefreshRequest{Token: "at_unknown"})
	require.Error(t, err)
	// The feed is in order: when a later reuse was told of, the repetitions were looked at.
	spent := h.issue(t, apitoken.Request{Refresh: true, Subject: "carol"})
	first := spent.Refresh.Reveal()
	for range 2 {
		spent, err = h.svc.Refresh(t.Context(), apitoken.RefreshRequest{Token: spent.Refresh.Reveal()})
		require.NoError(t, err)
	}
	_, err = h.svc.Refresh(t.Context(), apitoken.RefreshRequest{Token: first})
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	assert.Equal(t, "carol", h.alert(t).Subject, "only the spent token is an alert")
	require.Len(t, h.told(t), 1)
}

func TestAfterRevocationFindsWhoDoesNotStop(t *testing.T) {
	t.Parallel()
	h := newHouse(t, Config{}, RevokeSubject)
	i := h.issue(t, apitoken.Request{})
	require.NoError(t, h.svc.Revoke(t.Context(), apitoken.ByToken(i.Token.ID()), "stolen laptop"))
	for range 10 {
		_, err := h.svc.Validate(from(t.Context(), "203.0.113.66", "x"), apitoken.Bearer(i.Access.Reveal()))
		require.ErrorIs(t, err, apitoken.ErrRevoked)
	}
	a := h.alert(t)
	assert.Equal(t, AfterRevocation, a.Detector)
	assert.True(t, a.Authentic)
	assert.Equal(t, i.Token.ID(), a.TokenID)
	assert.Equal(t, 10, a.Evidence.Count)
}

func TestAPIKeysAreWatchedAsAccessTokensAre(t *testing.T) {
	t.Parallel()
	h := newHouse(t, Config{Unknown: 30}, Tell)
	k, secret, err := h.svc.APIKeys.Create(t.Context(), apitoken.APIKeyRequest{Subject: "ci", Name: "old", Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	require.NoError(t, h.svc.APIKeys.Revoke(t.Context(), k.ID, "rotated"))
	for range 10 {
		_, err := h.svc.Validate(from(t.Context(), "192.0.2.8", "curl/8"), apitoken.Bearer(secret.Reveal()))
		require.ErrorIs(t, err, apitoken.ErrInvalidToken)
	}
	a := h.alert(t)
	assert.Equal(t, AfterRevocation, a.Detector)
	assert.Equal(t, k.ID, a.TokenID)
	for range 30 {
		_, err := h.svc.Validate(from(t.Context(), "192.0.2.9", "curl/8"), apitoken.Bearer("not a token"))
		require.ErrorIs(t, err, apitoken.ErrInvalidToken)
	}
	a = h.alert(t)
	assert.Equal(t, UnknownTokens, a.Detector)
	assert.Equal(t, []netip.Addr{netip.MustParseAddr("192.0.2.9")}, a.Evidence.Addresses)
}

func TestScopeProbing(t *testing.T) {
	t.Parallel()
	t.Run("many refusals", func(t *testing.T) {
		t.Parallel()
		h := newHouse(t, Config{Forbidden: 20}, RevokeToken)
		i := h.issue(t, apitoken.Request{})
		for range 20 {
			_, err := apitoken.Authorize(t.Context(), h.svc, apitoken.Bearer(i.Access.Reveal()), apitoken.AllOf("orders:write"))
			require.ErrorIs(t, err, apitoken.ErrInsufficientScope)
		}
		a := h.alert(t)
		assert.Equal(t, ScopeProbing, a.Detector)
		assert.True(t, a.Authentic)
		assert.Equal(t, 20, a.Evidence.Count)
		require.Len(t, h.told(t), 1)
		_, err := h.svc.Validate(t.Context(), apitoken.Bearer(i.Access.Reveal()))
		assert.ErrorIs(t, err, apitoken.ErrRevoked)
	})
	t.Run("many different requirements", func(t *testing.T) {
		t.Parallel()
		h := newHouse(t, Config{}, Tell)
		i := h.issue(t, apitoken.Request{})
		for n := range 8 {
			_, err := apitoken.Authorize(t.Context(), h.svc, apitoken.Bearer(i.Access.Reveal()), apitoken.AllOf(apitoken.Scope(fmt.Sprintf("part%d:write", n))))
			require.ErrorIs(t, err, apitoken.ErrInsufficientScope)
		}
		a := h.alert(t)
		assert.Equal(t, ScopeProbing, a.Detector)
		assert.Equal(t, 8, a.Evidence.Limit)
	})
}

func TestClientFailuresNeverRevoke(t *testing.T) {
	t.Parallel()
	h := newHouse(t, Config{}, RevokeSubject)
	_, secret, err := h.svc.Clients.Create(t.Context(), apitoken.Client{ID: "shop", GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	i := h.issue(t, apitoken.Request{Auth: apitoken.ClientAuth{ID: "shop", Secret: secret}})
	_, wrong, err := h.svc.Clients.Create(t.Context(), apitoken.Client{ID: "other"})
	require.NoError(t, err)
	for n := range 20 {
		_, err := h.svc.Clients.Authenticate(from(t.Context(), fmt.Sprintf("203.0.113.%d", n), "x"), apitoken.ClientAuth{ID: "shop", Secret: wrong})
		require.Error(t, err)
	}
	a := h.alert(t)
	assert.Equal(t, ClientFailures, a.Detector)
	assert.Equal(t, "shop", a.Client)
	assert.False(t, a.Authentic, "anybody can send wrong secrets")
	told := h.told(t)
	require.Len(t, told, 1)
	assert.Empty(t, told[0].Client, "a name that was only claimed is no fact of the log")
	assert.Equal(t, `"shop"`, told[0].Extra["claimed_client"])
	assert.True(t, told[0].Target.IsZero())
	assert.Contains(t, told[0].Extra["outcome"], "refused")
	_, err = h.svc.Validate(t.Context(), apitoken.Bearer(i.Access.Reveal()))
	assert.NoError(t, err, "whatever the policy answers, a stranger cannot have the client's tokens revoked")
}

func TestUnknownTokensNeverRevoke(t *testing.T) {
	t.Parallel()
	h := newHouse(t, Config{Unknown: 50}, RevokeSubject)
	i := h.issue(t, apitoken.Request{})
	text := i.Access.Reveal()
	for n := range 50 {
		forged := text[:len(text)-8] + fmt.Sprintf("%08d", n)
		_, err := h.svc.Validate(from(t.Context(), "2001:db8:1:2::"+fmt.Sprint(n), "x"), apitoken.Bearer(forged))
		require.ErrorIs(t, err, apitoken.ErrInvalidToken)
	}
	a := h.alert(t)
	assert.Equal(t, UnknownTokens, a.Detector)
	assert.False(t, a.Authentic)
	assert.True(t, a.Token.IsZero(), "what is written in a forged token is not believed")
	assert.Empty(t, a.Subject)
	require.Len(t, h.told(t), 1)
	_, err := h.svc.Validate(t.Context(), apitoken.Bearer(text))
	assert.NoError(t, err)
}

func TestNothingIsRevokedOnEvidenceThatAnybodyCanMake(t *testing.T) {
	t.Parallel()
	token, err := apitoken.NewToken(apitoken.TokenSpec{ID: "jti", Issuer: issuer, Subject: "alice", Client: "web", Grant: "g"})
	require.NoError(t, err)
	for _, d := range []Detector{Reuse, AfterRevocation, Addresses, UserAgents, ScopeProbing, ClientFailures, UnknownTokens, Rise, Canary, "host's own"} {
		for _, action := range []Action{RevokeToken, RevokeGrant, RevokeSubject, Action(7), Action(-1)} {
			h := &recorder{}
			c := Config{Policy: func(context.Context, Alert) Action { return action }}
			require.NoError(t, c.check())
			w := newWatch(c, h)
			w.raise(Alert{Detector: d, Time: time.Now(), Token: token, Subject: "alice", Client: "web", Grant: "g", TokenID: "jti"})
			assert.Empty(t, h.revoked, "%s, %s: an alert that is not authentic must not revoke, whatever it names", d, action)
			assert.Len(t, h.told, 1, "it is told of all the same")
		}
	}
}

func TestCanary(t *testing.T) {
	t.Parallel()
	svc, err := apitoken.New(apitoken.Config{Issuer: issuer, Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true})
	require.NoError(t, err)
	t.Cleanup(func() { _ = svc.Close() })
	k, secret, err := svc.APIKeys.Create(t.Context(), apitoken.APIKeyRequest{Subject: "backup-admin", Name: "planted", Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	session, err := svc.Issue(t.Context(), apitoken.Request{Subject: "decoy", Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
	require.NoError(t, err)

	alerts := make(chan Alert, 8)
	w, err := Start(svc, Config{Canaries: []string{k.ID, session.Token.Grant()}, Policy: func(_ context.Context, a Alert) Action {
		alerts <- a
		return RevokeSubject
	}})
	require.NoError(t, err)
	h := &house{svc: svc, watch: w, alerts: alerts}
	t.Cleanup(func() { _ = w.Close() })

	other := h.issue(t, apitoken.Request{})
	for range 100 {
		_, err = svc.Validate(from(t.Context(), "192.0.2.1", "x"), apitoken.Bearer(other.Access.Reveal()))
		require.NoError(t, err)
	}
	assert.Empty(t, alerts, "other tokens are no canaries")

	_, err = svc.Validate(from(t.Context(), "203.0.113.66", "thief"), apitoken.Bearer(secret.Reveal()))
	require.NoError(t, err)
	a := h.alert(t)
	assert.Equal(t, Canary, a.Detector)
	assert.Equal(t, k.ID, a.TokenID)
	assert.Equal(t, "backup-admin", a.Subject)
	assert.True(t, a.Authentic)

	_, err = svc.Refresh(from(t.Context(), "203.0.113.66", "thief"), apitoken.RefreshRequest{Token: session.Refresh.Reveal()})
	require.NoError(t, err)
	a = h.alert(t)
	assert.Equal(t, Canary, a.Detector)
	assert.Equal(t, session.Token.Grant(), a.Grant, "a planted refresh token is found through the event feed")
	require.Len(t, h.told(t), 2)
	_, err = svc.Validate(t.Context(), apitoken.Bearer(secret.Reveal()))
	assert.ErrorIs(t, err, apitoken.ErrRevoked)
}

func TestRiseOverTheClientsOwnUsualRate(t *testing.T) {
	t.Parallel()
	if underRace {
		t.Skip("one goroutine calculates: it is judged without the race detector")
	}
	r := &recorder{}
	now := time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)
	c := Config{Now: func() time.Time { return now }}
	require.NoError(t, c.check())
	w := newWatch(c, r)
	quiet := clientToken(t, "reports", 1)
	loud := clientToken(t, "checkout", 2)
	minute := func(q, l int) {
		for range q {
			w.Observe(t.Context(), apitoken.Observation{Op: "validate", Token: quiet})
		}
		for range l {
			w.Observe(t.Context(), apitoken.Observation{Op: "validate", Token: loud})
		}
		now = now.Add(time.Minute)
		w.step(now)
	}
	for range 26 * 60 {
		minute(30, 400)
	}
	require.Empty(t, r.told, "a steady rate is no rise")
	for range 5 {
		minute(30, 1200)
	}
	require.Empty(t, r.told, "three times the usual is busy, not a rise")
	for range 5 {
		minute(900, 400)
	}
	require.Len(t, r.told, 1, "thirty times a client's own usual is a rise")
	assert.Equal(t, "rise", r.told[0].Reason)
	assert.Equal(t, "reports", r.told[0].Client)
	usual, err := strconv.Atoi(r.told[0].Extra["usual"])
	require.NoError(t, err)
	assert.InDelta(t, 200, usual, 120, "the highest of a day's samples of 150 calls")
	for range 50 {
		minute(900, 400)
	}
	assert.Len(t, r.told, 1, "and it is told once")
}

func clientToken(t testing.TB, client string, n int) apitoken.Token {
	t.Helper()
	x, err := apitoken.NewToken(apitoken.TokenSpec{ID: fmt.Sprintf("t%d", n), Issuer: issuer, Subject: client, Client: client})
	require.NoError(t, err)
	return x
}

func TestAnAlertIsSaidOnceAnHour(t *testing.T) {
	t.Parallel()
	r := &recorder{}
	now := time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC)
	c := Config{Now: func() time.Time { return now }, Unknown: 20}
	require.NoError(t, c.check())
	w := newWatch(c, r)
	for range 90 {
		for range 30 {
			w.Observe(t.Context(), apitoken.Observation{Op: "validate", Err: &apitoken.Error{Code: apitoken.ErrInvalidToken}, Origin: apitoken.Origin{Address: netip.MustParseAddr("203.0.113.66")}})
		}
		w.drain()
		now = now.Add(time.Minute)
		w.step(now)
	}
	assert.Len(t, r.told, 2, "an attack of an hour and a half")
}

func TestAStrangerCanNotFillTheLog(t *testing.T) {
	t.Parallel()
	r := &recorder{}
	now := time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC)
	c := Config{Now: func() time.Time { return now }, Unknown: 2}
	require.NoError(t, c.check())
	w := newWatch(c, r)
	for n := range 5000 {
		for range 2 {
			w.Observe(t.Context(), apitoken.Observation{Op: "validate", Err: &apitoken.Error{Code: apitoken.ErrInvalidToken},
				Origin: apitoken.Origin{Address: netip.AddrFrom4([4]byte{203, 0, byte(n >> 8), byte(n)})}})
		}
		w.drain()
	}
	require.Len(t, r.told, unprovedHour, "alerts that anybody can cause are bounded")
	now = now.Add(time.Hour)
	w.step(now)
	require.Len(t, r.told, unprovedHour+1, "and what was held back is summed up")
	last := r.told[len(r.told)-1]
	assert.Equal(t, 5000-unprovedHour, last.Count)
	assert.Equal(t, uint64(5000-unprovedHour), w.Stats().Suppressed)
}

func TestAlertsWaitForTheStore(t *testing.T) {
	t.Parallel()
	r := &recorder{fail: errors.New("disk full")}
	c := Config{Policy: func(context.Context, Alert) Action { return RevokeGrant }}
	require.NoError(t, c.check())
	w := newWatch(c, r)
	a := Alert{Detector: Addresses, Authentic: true, Time: time.Now(), Grant: "g", TokenID: "t"}
	w.raise(a)
	require.Len(t, r.revoked, 1, "taking power away does not wait for the log")
	require.Empty(t, r.told)
	w.step(time.Now())
	w.raise(a)
	require.Len(t, r.revoked, 1, "one finding is acted on once")
	r.fail = nil
	w.step(time.Now())
	require.Len(t, r.told, 1)
	assert.Equal(t, "in force in one process, not known to be in the store", r.told[0].Extra["outcome"], "the alert says how it stood")
}

func TestAPolicyThatPanicsTells(t *testing.T) {
	t.Parallel()
	r := &recorder{}
	c := Config{Policy: func(context.Context, Alert) Action { panic("host's bug") }}
	require.NoError(t, c.check())
	w := newWatch(c, r)
	w.raise(Alert{Detector: Canary, Authentic: true, Time: time.Now(), TokenID: "t"})
	require.Len(t, r.told, 1)
	assert.Empty(t, r.revoked)
	assert.Contains(t, r.told[0].Extra["outcome"], "panicked")
}

func TestConfigNamesTheField(t *testing.T) {
	t.Parallel()
	for field, c := range map[string]Config{
		"Window": {Window: time.Second}, "Quiet": {Quiet: -1}, "Tokens": {Tokens: -1}, "Addresses": {Addresses: 1000}, "Canaries": {Canaries: []string{""}},
		"Rise": {Rise: 1 << 20},
	} {
		_, err := Start(nil, c)
		var e *apitoken.ConfigError
		require.ErrorAs(t, err, &e, "%s", field)
		assert.Equal(t, field, e.Field)
		assert.True(t, strings.Contains(err.Error(), field), "the text names the field: %s", err)
	}
}

// recorder keeps what a Watch does.
type recorder struct {
	fail    error
	told    []apitoken.Event
	revoked []apitoken.Target
}

func (r *recorder) Issuer() string { return issuer }
func (r *recorder) Alert(_ context.Context, e apitoken.Event) error {
	if r.fail == nil {
		r.told = append(r.told, e)
	}
	return r.fail
}
func (r *recorder) Revoke(_ context.Context, t apitoken.Target, _ string) error {
	r.revoked = append(r.revoked, t)
	return r.fail
}
