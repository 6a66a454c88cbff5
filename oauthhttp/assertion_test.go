package oauthhttp_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"maps"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
)

const login = "https://login.example.org"

// idp is a foreign issuer's keys, which a test takes away and rolls.
type idp struct {
	key   atomic.Pointer[signer]
	down  atomic.Bool
	asked atomic.Int32
	later atomic.Bool // the host cannot say who "later" is
}

func (x *idp) JWKS(ctx context.Context, kid string) ([]byte, error) {
	x.asked.Add(1)
	if x.down.Load() {
		return nil, errors.New("down")
	}
	return x.key.Load().JWKS(ctx, kid)
}

func trusting(t testing.TB, change func(*oauthhttp.AssertionIssuer)) (*site, *idp) {
	t.Helper()
	keys := &idp{}
	keys.key.Store(newSigner(t))
	a := oauthhttp.AssertionIssuer{Issuer: login, Keys: keys, Subject: func(_ context.Context, a oauthhttp.Assertion) (oauthhttp.Identity, error) {
		switch a.Subject {
		case "blocked":
			return oauthhttp.Identity{}, errors.New("blocked")
		case "later":
			if keys.later.Load() {
				return oauthhttp.Identity{}, apitoken.ErrUnavailable
			}
		case "nobody":
			return oauthhttp.Identity{}, nil
		}
		var c struct{ Team string }
		if len(a.Claims) > 0 {
			if err := json.Unmarshal(a.Claims, &c); err != nil {
				return oauthhttp.Identity{}, err
			}
		}
		return oauthhttp.Identity{Subject: "login|" + a.Subject, Scopes: oauthhttp.Only("orders:read"), Claims: map[string]any{"team": c.Team}}, nil
	}}
	if change != nil {
		change(&a)
	}
	s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) { o.Assertions = []oauthhttp.AssertionIssuer{a} })
	s.client("app", nil)
	return s, keys
}

func (s *site) vouch(k *signer, header, change map[string]any) string {
	c := map[string]any{"iss": login, "sub": "alice", "aud": testIssuer, "jti": rand.Text(), "iat": s.at.Now().Unix(), "exp": s.at.Now().Add(time.Minute).Unix(), "team": "red"}
	for name, v := range change {
		if v == nil {
			delete(c, name)
		} else {
			c[name] = v
		}
	}
	return k.sign(header, c)
}

func TestATrustedIssuerVouches(t *testing.T) {
	t.Parallel()
	s, keys := trusting(t, nil)
	k := keys.key.Load()
	ask := func(assertion string, pairs ...string) *answer {
		return s.token(merge(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", assertion), pairs...), s.as("app"))
	}
	one := s.vouch(k, nil, nil)
	a := ask(one).ok()
	c := claims(t, a.text("access_token"))
	require.Equal(t, "login|alice", c["sub"], "a foreign subject is who the host says it is")
	require.Equal(t, "red", c["team"])
	require.Equal(t, "orders:read", a.text("scope"), "what the issuer's identities may have")
	require.NotContains(t, a.body, "refresh_token", "the issuer vouches anew (RFC 7521 §4.1)")
	ask(one).refused(400, "invalid_grant", "an assertion is good once")
	ask(s.vouch(k, nil, map[string]any{"aud": []string{"x", testIssuer + "/token"}})).ok()
	noID := s.vouch(k, nil, map[string]any{"jti": nil})
	ask(noID).ok("a jti is optional (RFC 7523 §3)")
	ask(noID).refused(400, "invalid_grant", "and the JWT itself is then good once")

	ask("").refused(400, "invalid_request")
	ask(s.vouch(k, nil, nil), "scope", "orders:write").refused(400, "invalid_scope", "more than its identities may have")
	ask(s.vouch(k, nil, nil), "resource", "https://x.example.com").refused(400, "invalid_target")
	keys.later.Store(true)
	patient := s.vouch(k, nil, map[string]any{"sub": "later"})
	ask(patient).refused(503, "temporarily_unavailable")
	ask(patient, "scope", "orders:write").refused(503, "temporarily_unavailable")
	keys.later.Store(false)
	ask(patient, "scope", "orders:write").refused(400, "invalid_scope")
	ask(patient).ok("what was refused for another reason has not spent it")
	ask(patient).refused(400, "invalid_grant")
	other := newSigner(t)
	for name, text := range map[string]string{
		"no JWT":             "x.y.z",
		"another issuer":     s.vouch(k, nil, map[string]any{"iss": "https://evil.example.com"}),
		"another key":        s.vouch(other, nil, nil),
		"another audience":   s.vouch(k, nil, map[string]any{"aud": testAudience}),
		"no audience":        s.vouch(k, nil, map[string]any{"aud": nil}),
		"no subject":         s.vouch(k, nil, map[string]any{"sub": nil}),
		"no expiry":          s.vouch(k, nil, map[string]any{"exp": nil}),
		"expired":            s.vouch(k, nil, map[string]any{"exp": s.at.Now().Add(-time.Second).Unix()}),
		"lives too long":     s.vouch(k, nil, map[string]any{"exp": s.at.Now().Add(2 * time.Hour).Unix()}),
		"not valid yet":      s.vouch(k, nil, map[string]any{"nbf": s.at.Now().Add(time.Hour).Unix()}),
		"from the future":    s.vouch(k, nil, map[string]any{"iat": s.at.Now().Add(time.Hour).Unix()}),
		"an access token":    s.vouch(k, map[string]any{"typ": "at+jwt"}, nil),
		"a logout token":     s.vouch(k, map[string]any{"typ": "logout+jwt"}, nil),
		"bound":              s.vouch(k, nil, map[string]any{"cnf": map[string]any{"jkt": other.print}}),
		"a key of its own":   s.vouch(other, map[string]any{"jwk": other.jwk}, nil),
		"whom the host bars": s.vouch(k, nil, map[string]any{"sub": "blocked"}),
		"nobody here":        s.vouch(k, nil, map[string]any{"sub": "nobody"}),
		"one of our own":     a.text("access_token"),
	} {
		ask(text).refused(400, "invalid_grant", name)
	}
}

func TestOneAssertionOfAnIdentityWins(t *testing.T) {
	t.Parallel()
	s, keys := trusting(t, nil)
	body := params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", s.vouch(keys.key.Load(), nil, nil))
	require.Equal(t, 1, race(func(int) bool { return s.token(body, s.as("app")).StatusCode == 200 }))

	s, keys = trusting(t, func(a *oauthhttp.AssertionIssuer) { a.Reusable = true })
	body = params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", s.vouch(keys.key.Load(), nil, nil))
	require.Equal(t, 64, race(func(int) bool { return s.token(body, s.as("app")).StatusCode == 200 }), "a workload's token is made to be used again")
}

func TestAnIssuersKeysRoll(t *testing.T) {
	t.Parallel()
	s, keys := trusting(t, nil)
	named := func(kid string) *signer {
		k := newSigner(t)
		k.jwk = maps.Clone(k.jwk)
		k.jwk["kid"] = kid
		return k
	}
	first, second := named("1"), named("2")
	keys.key.Store(first)
	ask := func(k *signer) *answer {
		return s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", s.vouch(k, map[string]any{"kid": k.jwk["kid"]}, nil)), s.as("app"))
	}
	ask(first).ok()
	ask(first).ok()
	require.EqualValues(t, 1, keys.asked.Load(), "keys are kept")
	keys.key.Store(second)
	for range 5 {
		ask(second).refused(400, "invalid_grant", "an unknown kid does not hammer the issuer")
	}
	require.EqualValues(t, 1, keys.asked.Load())
	s.at.Advance(11 * time.Second)
	ask(second).ok("a new key is fetched")
	keys.down.Store(true)
	s.at.Advance(10 * time.Minute)
	ask(second).ok("the last good keys serve while the issuer is down")
	s.at.Advance(25 * time.Hour)
	ask(second).refused(503, "temporarily_unavailable", "but not for ever")
	dead, gone := trusting(t, nil)
	gone.down.Store(true)
	dead.token(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", dead.vouch(gone.key.Load(), nil, nil)), dead.as("app")).refused(503, "temporarily_unavailable")
}

// An issuer's clock may be ahead by Validation.Skew, as for tokens and proofs, and by no more.
func TestTheClockOfAnAssertionHasTheOneSetting(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ skew, good, bad time.Duration }{
		"default": {0, 10 * time.Second, 11 * time.Second},
		"wide":    {time.Minute, time.Minute, 61 * time.Second},
		"none":    {-1, 0, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newSigner(t)
			s := newSite(t, func(cfg *apitoken.Config, o *oauthhttp.Options) {
				cfg.Validation.Skew = c.skew
				o.Assertions = []oauthhttp.AssertionIssuer{{Issuer: login, Keys: k, Subject: func(_ context.Context, a oauthhttp.Assertion) (oauthhttp.Identity, error) {
					return oauthhttp.Identity{Subject: "login|" + a.Subject, Scopes: oauthhttp.Only("orders:read")}, nil
				}}}
			})
			s.client("app", nil)
			for _, claim := range []string{"iat", "nbf"} {
				ask := func(ahead time.Duration) *answer {
					now := s.at.Now()
					assertion := s.vouch(k, nil, map[string]any{claim: now.Add(ahead).Unix(), "exp": now.Add(5 * time.Minute).Unix()})
					return s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", assertion), s.as("app"))
				}
				ask(c.good).ok(claim)
				ask(c.bad).refused(400, "invalid_grant", claim)
			}
		})
	}
}
