package profile_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/profile"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/boltstore"
)

// oldClaims are those of a service that embeds golang-jwt's: a member with its Go name, as a struct without tags has it.
type oldClaims struct {
	Email string
	Scope string `json:"scope,omitempty"`
	jwt.RegisteredClaims
}

// old is the service as it was: it signs with golang-jwt and keeps nothing.
type old struct {
	method jwt.SigningMethod
	key    any // signs
	public any // verifies
	clock  func() time.Time
	life   time.Duration
}

func (o *old) login(user string) string {
	now := o.clock()
	c := oldClaims{Email: user + "@example.com", Scope: "orders:read",
		RegisteredClaims: jwt.RegisteredClaims{Subject: user, IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(o.life))}}
	token, err := jwt.NewWithClaims(o.method, c).SignedString(o.key)
	if err != nil {
		panic(err)
	}
	return token
}

// api is the old service's own check.
func (o *old) api(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := jwt.ParseWithClaims(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), &oldClaims{}, func(*jwt.Token) (any, error) { return o.public, nil },
			jwt.WithValidMethods([]string{o.method.Alg()}), jwt.WithTimeFunc(o.clock))
		if err != nil {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// TestMoveFromGolangJWT runs an old service under load, puts the new one in its place, and looks at each answer: nobody is logged
// out, a user who is revoked is out at once with old tokens and new ones, and nothing old is taken after the end.
func TestMoveFromGolangJWT(t *testing.T) {
	t.Parallel()
	secret := []byte(rand.Text() + rand.Text())
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	for _, o := range []*old{
		{method: jwt.SigningMethodHS256, key: secret, public: secret},
		{method: jwt.SigningMethodRS256, key: key, public: &key.PublicKey},
	} {
		t.Run(o.method.Alg(), func(t *testing.T) {
			t.Parallel()
			move(t, o)
		})
	}
}

func move(t *testing.T, o *old) {
	ctx := context.Background()
	start := time.Now()
	var ahead atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	o.clock, o.life = now, 14*24*time.Hour
	until := start.Add(30 * 24 * time.Hour)

	hello := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "hello") })
	var site atomic.Value // http.Handler's function, so that it can be put in place of another
	site.Store(o.api(hello).ServeHTTP)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		site.Load().(func(http.ResponseWriter, *http.Request))(w, r)
	}))
	defer server.Close()
	call := func(token string) int {
		r, err := http.NewRequest(http.MethodGet, server.URL, nil)
		if err != nil {
			panic(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		a, err := server.Client().Do(r)
		if err != nil {
			return 0
		}
		defer a.Body.Close()
		_, _ = io.Copy(io.Discard, a.Body)
		return a.StatusCode
	}

	users := []string{"alice", "bob", "carol", "dave", "erin", "frank", "grace", "mallory"}
	held := map[string]*atomic.Value{} // each user's token now
	for _, user := range users {
		held[user] = &atomic.Value{}
		held[user].Store(o.login(user))
	}

	// The load: each user calls again and again, and is never told to log in.
	stop := make(chan struct{})
	var load sync.WaitGroup
	var calls, refused, revoked atomic.Int64
	for _, user := range users {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				calls.Add(1)
				out := revoked.Load() == 2 // before the call
				switch code := call(held[user].Load().(string)); {
				case user == "mallory" && out:
					if code == http.StatusOK {
						t.Error("a revoked user's token is taken")
						return
					}
				case user == "mallory" && revoked.Load() != 0: // on its way
				case code != http.StatusOK:
					refused.Add(1)
				}
			}
		})
	}
	some := func() {
		t.Helper()
		from := calls.Load()
		require.Eventually(t, func() bool { return calls.Load() > from+40 }, time.Minute, time.Millisecond)
	}
	some()

	// The new service takes the old one's place.
	st, err := boltstore.Open(filepath.Join(t.TempDir(), "tokens.db"), nil)
	require.NoError(t, err)
	defer st.Close()
	svc, err := apitoken.New(apitoken.Config{
		Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, InsecureKeysInStore: true, Now: now,
		Trust: []apitoken.Trusted{{Issuer: "old", MaxLifetime: o.life, Scopes: apitoken.Scopes{"orders"},
			Profile: profile.GolangJWT(until, profile.Key{Alg: o.method.Alg(), Key: o.public})}},
	})
	require.NoError(t, err)
	defer svc.Close()
	guard := httpauth.New(svc, nil).Require("orders:read")
	site.Store(guard(hello).ServeHTTP)
	some()

	// Who logs in from now on has a new token; who comes with an old one may change it, in the place where the old ones were renewed.
	token, err := svc.Issue(ctx, apitoken.Request{Subject: "bob", Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	held["bob"].Store(token.Access.Reveal())
	began := svc.Begin(ctx) // a revocation meanwhile ends what comes of it
	carol, err := svc.Validate(began, apitoken.Bearer(held["carol"].Load().(string)))
	require.NoError(t, err)
	require.Equal(t, "carol", carol.Subject())
	token, err = svc.Issue(began, apitoken.Request{Subject: carol.Subject(), Scopes: carol.Scopes()})
	require.NoError(t, err)
	held["carol"].Store(token.Access.Reveal())
	some()

	// A user is revoked: the old tokens are refused like the new ones, those of the same second too.
	fresh, err := svc.Issue(ctx, apitoken.Request{Subject: "mallory", Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, call(fresh.Access.Reveal()))
	revoked.Store(1)
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("mallory"), "stole"))
	revoked.Store(2)
	require.Equal(t, http.StatusUnauthorized, call(fresh.Access.Reveal()))
	require.Equal(t, http.StatusUnauthorized, call(held["mallory"].Load().(string)))
	_, err = svc.Validate(ctx, apitoken.Bearer(held["mallory"].Load().(string)))
	require.ErrorIs(t, err, apitoken.ErrRevoked)
	some()
	close(stop)
	load.Wait()
	require.Zero(t, refused.Load(), "somebody was logged out, in %d calls", calls.Load())

	// The host's own claims are there, by the type that it had.
	var c oldClaims
	_, err = apitoken.ParseWithClaims(ctx, svc, apitoken.Bearer(held["alice"].Load().(string)), &c)
	require.NoError(t, err)
	require.Equal(t, "alice@example.com", c.Email)
	require.Equal(t, "alice", c.RegisteredClaims.Subject)

	// The end: nothing old is taken, however long it says that it lives, and however well it is known.
	ahead.Store(int64(29 * 24 * time.Hour))
	late := o.login("alice")
	known(t, svc, late) // the view of the rules is read again after such a jump of the clock
	kept, err := svc.Validate(ctx, apitoken.Bearer(late))
	require.NoError(t, err)
	require.True(t, kept.ExpiresAt().Equal(until.Truncate(time.Second)), "it ends with the others")
	_, err = svc.Validate(ctx, apitoken.Bearer(o.login("mallory")))
	require.NoError(t, err, "who logs in at the old service after the revocation is somebody whom it let in again")
	ahead.Store(int64(30 * 24 * time.Hour))
	known(t, svc, late)
	for _, token := range []string{late, o.login("bob")} {
		_, err = svc.Validate(ctx, apitoken.Bearer(token))
		require.ErrorIs(t, err, apitoken.ErrExpired)
	}
	require.ErrorIs(t, kept.Recheck(ctx), apitoken.ErrExpired)
}

// TestRulesReachOldTokens: each rule of the service ends the old tokens that it names, and no other.
func TestRulesReachOldTokens(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	secret := []byte(rand.Text() + rand.Text())
	same := newService(t, nil, trusted(profile.Profile{Iss: []string{"", issuer}, Keys: []profile.Key{{Alg: "HS256", Key: secret}}, SameUsers: true,
		InsecureNoAudience: true, RoleScopes: map[string][]string{"clerk": {"orders:write"}}, Until: time.Now().Add(time.Hour)}))
	foreign := newService(t, nil, trusted(profile.Profile{Iss: []string{"", issuer}, Keys: []profile.Key{{Alg: "HS256", Key: secret}},
		InsecureNoAudience: true, RoleScopes: map[string][]string{"clerk": {"orders:write"}}}))

	token := func(subject, client, role, jti string, age time.Duration) string {
		c := jwt.MapClaims{"sub": subject, "azp": client, "roles": []string{role}, "iat": time.Now().Add(-age).Unix(), "exp": time.Now().Add(time.Hour).Unix()}
		if jti != "" {
			c["jti"] = jti
		}
		return sign(t, jwt.SigningMethodHS256, secret, nil, c)
	}
	hit, spared := token("alice", "web", "clerk", "", 10*time.Minute), token("bob", "app", "driver", "b1", time.Minute)
	good, err := same.Validate(ctx, apitoken.Bearer(hit))
	require.NoError(t, err)
	require.Equal(t, "web", good.Client())
	require.Equal(t, []string{"clerk"}, good.Roles())
	require.True(t, good.Allows("orders:write"))
	other, err := foreign.Validate(ctx, apitoken.Bearer(hit))
	require.NoError(t, err)
	require.Empty(t, other.Client(), "another's name")

	for name, target := range map[string]apitoken.Target{
		"token": apitoken.ByToken(good.ID()), "subject": apitoken.BySubject("alice"), "sessions": apitoken.BySessions("alice"), "client": apitoken.ByClient("web"),
		"held": apitoken.BySubject("alice").HeldBy("web"), "role": apitoken.ByRole("clerk"), "before": apitoken.Everything().IssuedBefore(time.Now().Add(-5 * time.Minute)),
	} {
		svc := newService(t, nil, same.trust)
		require.NoError(t, validate(svc, hit), name)
		require.NoError(t, validate(svc, spared), name)
		require.NoError(t, svc.Revoke(ctx, target, "test"), name)
		require.ErrorIs(t, validate(svc, hit), apitoken.ErrRevoked, name)
		require.NoError(t, validate(svc, spared), name)

		if name == "held" || name == "role" || name == "before" {
			continue
		}
		svc = newService(t, nil, foreign.trust)
		require.NoError(t, svc.Revoke(ctx, target, "test"), name)
		require.NoError(t, validate(svc, hit), "%s: a name of ours is none of theirs", name)
		require.NoError(t, svc.Revoke(ctx, target.OfIssuer("old"), "test"), name)
		require.ErrorIs(t, validate(svc, hit), apitoken.ErrRevoked, name)
		require.NoError(t, validate(svc, spared), name)
	}
	require.NoError(t, same.Revoke(ctx, apitoken.Everything(), "test"))
	require.ErrorIs(t, validate(same, hit), apitoken.ErrRevoked)
	require.ErrorIs(t, validate(same, spared), apitoken.ErrRevoked)
	x := same.Explain(ctx, apitoken.Bearer(hit), apitoken.Requirement{})
	require.Contains(t, x.Steps[len(x.Steps)-1].Detail, "everything was revoked")

	// One that leaks is found by its text, and ends alone.
	for _, svc := range []*service{newService(t, nil, same.trust), newService(t, nil, foreign.trust)} {
		n, err := svc.RevokeLeaked(ctx, []byte("GET /?token="+hit+" HTTP/1.1"), "in a log")
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.ErrorIs(t, validate(svc, hit), apitoken.ErrRevoked)
		require.NoError(t, validate(svc, spared))
		require.NoError(t, validate(svc, token("alice", "web", "clerk", "", 9*time.Minute)))
	}

	// What does not say when it was made is older than any rule.
	undated := sign(t, jwt.SigningMethodHS256, secret, nil, jwt.MapClaims{"sub": "alice", "azp": "web"})
	require.ErrorIs(t, validate(newService(t, nil, same.trust), undated), apitoken.ErrInvalidToken)
	svc := newService(t, nil, trusted(profile.Profile{Iss: []string{""}, Keys: []profile.Key{{Alg: "HS256", Key: secret}}, SameUsers: true,
		InsecureNoAudience: true, InsecureNoExpiry: true, InsecureNoIssuedAt: true, Until: time.Now().Add(time.Hour)}))
	require.NoError(t, validate(svc, undated))
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice").IssuedBefore(time.Now().Add(-time.Hour)), "test"))
	require.ErrorIs(t, validate(svc, undated), apitoken.ErrRevoked)
}

// service remembers whom it trusts, so that a test makes another that trusts the same.
type service struct {
	*apitoken.Service
	trust apitoken.Trusted
}

const issuer, audience = "https://auth.example.com", "https://api.example.com"

func trusted(p profile.Profile) apitoken.Trusted {
	return apitoken.Trusted{Issuer: "old", Profile: &p, Scopes: apitoken.Scopes{"orders"}}
}

func newService(t *testing.T, change func(*apitoken.Config), trust apitoken.Trusted) *service {
	t.Helper()
	st, err := boltstore.Open(filepath.Join(t.TempDir(), "tokens.db"), nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = st.Close() })
	c := apitoken.Config{Issuer: issuer, Audience: audience, Store: st, InsecureKeysInStore: true, Trust: []apitoken.Trusted{trust}}
	if change != nil {
		change(&c)
	}
	svc, err := apitoken.New(c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, svc.Close()) })
	return &service{svc, trust}
}

func validate(v apitoken.Validator, token string) error {
	_, err := v.Validate(context.Background(), apitoken.Bearer(token))
	return err
}

func sign(t *testing.T, method jwt.SigningMethod, key any, header map[string]any, c jwt.MapClaims) string {
	t.Helper()
	token := jwt.NewWithClaims(method, c)
	for name, v := range header {
		if token.Header[name] = v; v == nil {
			delete(token.Header, name)
		}
	}
	text, err := token.SignedString(key)
	require.NoError(t, err)
	return text
}

// keySet is a JWKS.
type keySet []byte

func (k keySet) JWKS(context.Context, string) ([]byte, error) {
	if k == nil {
		return nil, errors.New("none")
	}
	return k, nil
}

func setOf(t *testing.T, kid string, key *rsa.PublicKey) keySet {
	t.Helper()
	doc, err := json.Marshal(map[string]any{"keys": []any{map[string]string{"kty": "RSA", "use": "sig", "kid": kid, "n": base64url(key.N.Bytes()), "e": "AQAB"}}})
	require.NoError(t, err)
	return doc
}

// TestRulesOutliveOldTokens: a rule is kept until the last old token that it hits has died, however short the new ones live.
func TestRulesOutliveOldTokens(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	key := profile.Key{Alg: "HS256", Key: []byte(rand.Text() + rand.Text())}
	until := time.Now().Add(60 * 24 * time.Hour)
	dated := apitoken.Trusted{Issuer: "old", MaxLifetime: 50 * 24 * time.Hour, Profile: profile.GolangJWT(until, key)}
	undated := apitoken.Trusted{Issuer: "old", Profile: profile.GolangJWT(until, key)}
	undated.Profile.InsecureNoIssuedAt = true
	for least, trust := range map[time.Duration]apitoken.Trusted{50 * 24 * time.Hour: dated, 60 * 24 * time.Hour: undated} {
		var st store.Store
		svc := newService(t, func(c *apitoken.Config) {
			st, c.Lifetimes = c.Store, apitoken.Lifetimes{Access: time.Minute, MaxAccess: time.Minute, Grant: time.Hour}
		}, trust)
		for _, target := range []apitoken.Target{apitoken.ByToken("x"), apitoken.BySessions("alice"), apitoken.ByRole("r"), apitoken.BySubject("alice"), apitoken.ByClient("web").OfIssuer("old")} {
			require.NoError(t, svc.Revoke(ctx, target, "test"))
		}
		page, err := st.List(ctx, store.Query{Kind: store.KindRule, Limit: 100})
		require.NoError(t, err)
		require.Len(t, page.Records, 5)
		for _, r := range page.Records {
			require.True(t, r.Expires == 0 || r.Expires > time.Now().Add(least).UnixMilli(), "%s ends too early", r.Data)
		}
	}
}
