package remote_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/remote"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/boltstore"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// site is an issuer behind a real HTTP server that can be cut off.
type site struct {
	svc  *apitoken.Service
	st   store.Store
	srv  *httptest.Server
	url  string
	auth apitoken.ClientAuth
	hits sync.Map // path → *atomic.Int64
	down atomic.Bool
	jwks atomic.Pointer[http.HandlerFunc] // answers for the key set, when set
	feed atomic.Pointer[http.HandlerFunc]
	ctx  context.Context
}

func (s *site) count(path string) int64 {
	n, _ := s.hits.LoadOrStore(path, new(atomic.Int64))
	return n.(*atomic.Int64).Load()
}

func newSite(t testing.TB, change func(*apitoken.Config)) *site {
	t.Helper()
	s := &site{ctx: context.Background()}
	var handler atomic.Pointer[http.Handler]
	s.srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := s.hits.LoadOrStore(r.URL.Path, new(atomic.Int64))
		n.(*atomic.Int64).Add(1)
		if s.down.Load() {
			panic(http.ErrAbortHandler)
		}
		if f := s.jwks.Load(); f != nil && strings.HasSuffix(r.URL.Path, "jwks.json") {
			(*f)(w, r)
			return
		}
		if f := s.feed.Load(); f != nil && strings.HasSuffix(r.URL.Path, "revocations") {
			(*f)(w, r)
			return
		}
		(*handler.Load()).ServeHTTP(w, r)
	}))
	t.Cleanup(s.srv.Close)
	s.url = s.srv.URL
	dir := t.TempDir()
	st, err := boltstore.Open(filepath.Join(dir, "tokens.db"), nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, st.Close()) })
	s.st = st
	cfg := apitoken.Config{Issuer: s.url, Audience: "https://api.example.com", Store: st, InsecureKeysInStore: true}
	if change != nil {
		change(&cfg)
	}
	s.svc, err = apitoken.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.svc.Close()) })
	h := remote.Handler(s.svc)
	handler.Store(&h)
	c, secret, err := s.svc.Clients.Create(s.ctx, apitoken.Client{ID: "orders", GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{remote.FollowScope}})
	require.NoError(t, err)
	s.auth = apitoken.ClientAuth{ID: c.ID, Secret: secret}
	return s
}

func (s *site) validator(t testing.TB, change func(*remote.Config)) *remote.Validator {
	t.Helper()
	cfg := remote.Config{Issuer: s.url, Audience: "https://api.example.com", Client: s.auth}
	if change != nil {
		change(&cfg)
	}
	v, err := remote.NewValidator(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, v.Close()) })
	return v
}

func ready(t testing.TB, v *remote.Validator) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	require.NoError(t, v.Ready(ctx))
}

func (s *site) issue(t *testing.T, subject string, scopes ...apitoken.Scope) string {
	t.Helper()
	i, err := s.svc.Issue(s.ctx, apitoken.Request{Subject: subject, Scopes: scopes, Refresh: true})
	require.NoError(t, err)
	return i.Access.Reveal()
}

// eventually polls: what it waits for comes over a real connection.
func eventually(t *testing.T, what string, f func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	require.Eventually(t, f, time.Minute, time.Millisecond, what)
	return time.Since(began)
}

func refused(v apitoken.Validator, token string, want error) func() bool {
	return func() bool {
		_, err := v.Validate(context.Background(), apitoken.Bearer(token))
		return errors.Is(err, want)
	}
}

func TestRemoteValidatorAgreesWithTheIssuer(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	v := s.validator(t, nil)
	ready(t, v)
	token := s.issue(t, "alice", "orders:read")
	tok, err := v.Validate(s.ctx, apitoken.Bearer(token))
	require.NoError(t, err)
	require.Equal(t, "alice", tok.Subject())
	require.True(t, tok.Allows("orders:read"))
	require.False(t, tok.Freshness().Stale)

	other := s.issue(t, "bob")
	require.NoError(t, s.svc.Revoke(s.ctx, apitoken.BySubject("alice"), "left"))
	took := eventually(t, "the revocation reaches the other process", refused(v, token, apitoken.ErrRevoked))
	t.Logf("revoked there after %s", took)
	_, err = v.Validate(s.ctx, apitoken.Bearer(other))
	require.NoError(t, err, "bob is not alice")
	again := s.issue(t, "alice")
	_, err = v.Validate(s.ctx, apitoken.Bearer(again))
	require.NoError(t, err, "what is issued after a revocation is good")
}

func TestStartsWhileTheIssuerIsDown(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	token := s.issue(t, "alice")
	s.down.Store(true)
	v := s.validator(t, nil)
	_, err := v.Validate(s.ctx, apitoken.Bearer(token))
	require.ErrorIs(t, err, apitoken.ErrUnavailable, "it cannot know, and says so")
	ctx, cancel := context.WithTimeout(s.ctx, 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, v.Ready(ctx), apitoken.ErrUnavailable)
	s.down.Store(false)
	ready(t, v)
	_, err = v.Validate(s.ctx, apitoken.Bearer(token))
	require.NoError(t, err)
}

func TestBoundIsKeptWhenTheFeedFails(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	strict := s.validator(t, func(c *remote.Config) { c.Validation.MaxStaleness = 300 * time.Millisecond })
	lenient := s.validator(t, func(c *remote.Config) {
		c.Validation.MaxStaleness = 300 * time.Millisecond
		c.Validation.InsecureServeStale = time.Hour
	})
	ready(t, strict)
	ready(t, lenient)
	token := s.issue(t, "alice")
	eventually(t, "a good token", func() bool {
		_, err := strict.Validate(s.ctx, apitoken.Bearer(token))
		return err == nil
	})
	s.down.Store(true)
	eventually(t, "past MaxStaleness a validator refuses", refused(strict, token, apitoken.ErrUnavailable))
	eventually(t, "or goes on and says so", func() bool {
		tok, err := lenient.Validate(s.ctx, apitoken.Bearer(token))
		return err == nil && tok.Freshness().Stale
	})
	_, err := strict.Validate(s.ctx, apitoken.Bearer("junk"))
	require.ErrorIs(t, err, apitoken.ErrInvalidToken, "503 is only ever seen by authentic tokens")
	s.down.Store(false)
	eventually(t, "it recovers by itself", func() bool {
		_, err := strict.Validate(s.ctx, apitoken.Bearer(token))
		return err == nil
	})
}

func TestAPIKeysByIntrospection(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	v := s.validator(t, nil)
	ready(t, v)
	x, secret, err := s.svc.APIKeys.Create(s.ctx, apitoken.APIKeyRequest{Subject: "bob", Name: "ci", Scopes: apitoken.Scopes{"deploy"}, Claims: map[string]string{"team": "red"}})
	require.NoError(t, err)
	for range 20 {
		tok, err := v.Validate(s.ctx, apitoken.Bearer(secret.Reveal()))
		require.NoError(t, err)
		require.True(t, tok.IsAPIKey())
		require.Equal(t, x.ID, tok.ID())
		require.True(t, tok.Allows("deploy"))
		var claims map[string]string
		require.NoError(t, tok.Claims(&claims))
		require.Equal(t, "red", claims["team"])
	}
	// Twice where the feed told of the new key only after the first question: an answer from before a change is void.
	require.LessOrEqual(t, s.count("/apitoken/introspect"), int64(2), "the answer is kept")
	require.NoError(t, s.svc.APIKeys.Revoke(s.ctx, x.ID, "lost"))
	eventually(t, "a rule drops the kept answer", refused(v, secret.Reveal(), apitoken.ErrInvalidToken))

	// A change of the key that is no revocation drops the answer too.
	_, few, err := s.svc.APIKeys.Create(s.ctx, apitoken.APIKeyRequest{Subject: "bob", Name: "twice", MaxUses: 2})
	require.NoError(t, err)
	for range 3 {
		_, err = v.Validate(s.ctx, apitoken.Bearer(few.Reveal()))
		require.ErrorIs(t, err, apitoken.ErrInvalidToken, "a key with a number of uses is not good where nobody counts them")
	}
	_, err = s.svc.Validate(s.ctx, apitoken.Bearer(few.Reveal()))
	require.NoError(t, err)

	y, secret2, err := s.svc.APIKeys.Create(s.ctx, apitoken.APIKeyRequest{Subject: "bob", Name: "old"})
	require.NoError(t, err)
	_, err = v.Validate(s.ctx, apitoken.Bearer(secret2.Reveal()))
	require.NoError(t, err)
	_, _, err = s.svc.APIKeys.Rotate(s.ctx, y.ID, 0)
	require.NoError(t, err)
	eventually(t, "rotation without overlap ends the old secret everywhere", refused(v, secret2.Reveal(), apitoken.ErrInvalidToken))
}

func TestCompromisedKeyIsRefusedEverywhere(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	v := s.validator(t, nil)
	ready(t, v)
	old := s.issue(t, "alice")
	_, err := v.Validate(s.ctx, apitoken.Bearer(old))
	require.NoError(t, err)
	keys, err := s.svc.SigningKeys.List(s.ctx)
	require.NoError(t, err)
	require.Len(t, keys, 1)
	require.NoError(t, s.svc.SigningKeys.Compromise(s.ctx, keys[0].ID, "stolen laptop"))
	fresh := s.issue(t, "alice")
	eventually(t, "what the key signed is refused", refused(v, old, apitoken.ErrInvalidToken))
	eventually(t, "what the new key signs is good", func() bool {
		_, err := v.Validate(s.ctx, apitoken.Bearer(fresh))
		return err == nil
	})
	// An old copy of the key set does not bring it back.
	doc := []byte(`{"keys":[` + string(keys[0].JWK) + `]}`)
	serve := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(doc) })
	s.jwks.Store(&serve)
	w := s.validator(t, nil)
	eventually(t, "the feed wins over the key set", func() bool { return w.Freshness().Age < time.Minute })
	eventually(t, "refused", refused(w, old, apitoken.ErrInvalidToken))
}

func TestFeedNeedsARight(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	_, stranger, err := s.svc.Clients.Create(s.ctx, apitoken.Client{ID: "stranger", GrantTypes: []string{"client_credentials"}})
	require.NoError(t, err)
	for _, x := range []struct {
		name, id, secret string
		want             int
	}{
		{"no scope", "stranger", stranger.Reveal(), 403},
		{"wrong secret", "orders", stranger.Reveal(), 401},
		{"nobody", "nobody", "nothing at all here", 401},
		{"right", s.auth.ID, s.auth.Secret.Reveal(), 200},
	} {
		for _, path := range []string{"/apitoken/revocations?after=0.0&nonce=n", "/apitoken/introspect"} {
			method, body := http.MethodGet, ""
			if strings.HasSuffix(path, "introspect") {
				method, body = http.MethodPost, "token=x"
			}
			r, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
			require.NoError(t, err)
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.SetBasicAuth(x.id, x.secret)
			res, err := http.DefaultClient.Do(r)
			require.NoError(t, err)
			require.NoError(t, res.Body.Close())
			require.Equal(t, x.want, res.StatusCode, "%s %s", x.name, path)
		}
	}
	var refused []apitoken.Event
	for e, err := range s.svc.Events(s.ctx, apitoken.EventQuery{Type: event.Refused}) {
		require.NoError(t, err)
		if e.Reason == "follow" {
			refused = append(refused, e)
		}
	}
	require.Len(t, refused, 1, "who proved who it is and may not follow is in the log")
	require.Equal(t, "stranger", refused[0].Client)
	require.Equal(t, 2, refused[0].Count)
	require.Contains(t, refused[0].Extra["why"], string(remote.FollowScope))
	res, err := http.Get(s.url + "/apitoken/revocations?after=0.0&nonce=n")
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, 401, res.StatusCode)
}

func TestALongPollEndsWithTheRight(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	view, err := s.svc.Revocations(s.ctx, store.Position{}, 0)
	require.NoError(t, err)
	q := fmt.Sprintf("?after=%x.%x&nonce=n&wait=20000", view.Next.History, view.Next.N)
	status := make(chan int, 1)
	go func() {
		r, _ := http.NewRequest(http.MethodGet, s.url+"/apitoken/revocations"+q, nil)
		r.SetBasicAuth(s.auth.ID, s.auth.Secret.Reveal())
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			status <- -1
			return
		}
		_ = res.Body.Close()
		status <- res.StatusCode
	}()
	eventually(t, "the poll has begun", func() bool { return s.count("/apitoken/revocations") == 1 })
	_, err = s.svc.Clients.Update(s.ctx, "orders", func(c *apitoken.Client) error { c.Disabled = true; return nil })
	require.NoError(t, err)
	got := <-status
	require.Contains(t, []int{401, 403}, got, "a client that was disabled during the poll gets nothing")
}

func TestAnAnswerForAnotherQuestionIsNotTaken(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	// A cache in between that answers with what it kept.
	r, err := http.NewRequest(http.MethodGet, s.url+"/apitoken/revocations?after=0.0&nonce=old", nil)
	require.NoError(t, err)
	r.SetBasicAuth(s.auth.ID, s.auth.Secret.Reveal())
	res, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	kept := readAll(t, res)
	serve := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, kept) })
	s.feed.Store(&serve)
	v := s.validator(t, nil)
	eventually(t, "it is asked", func() bool { return s.count("/apitoken/revocations") > 2 })
	require.True(t, v.Freshness().Stale, "an answer without our nonce vouches for nothing")
}

func readAll(t *testing.T, res *http.Response) string {
	t.Helper()
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return string(b)
}

func TestKeySetThatMisbehaves(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	v := s.validator(t, func(c *remote.Config) { c.Validation.Cache = apitoken.NewCache(0) })
	ready(t, v)
	token := s.issue(t, "alice")
	for name, f := range map[string]http.HandlerFunc{
		"down":      func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"error":     func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"giant":     func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 10<<20)) },
		"malformed": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"keys":`)) },
		"empty":     func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"keys":[]}`)) },
		"redirecting": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		},
		"html": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`<html>`)) },
	} {
		s.jwks.Store(&f)
		before, began := s.count("/.well-known/jwks.json"), time.Now()
		for range 10_000 { // kids that nobody knows
			_, err := v.Validate(s.ctx, apitoken.Bearer(withKID(token, name)))
			require.ErrorIs(t, err, apitoken.ErrInvalidToken)
		}
		_, err := v.Validate(s.ctx, apitoken.Bearer(token))
		require.NoError(t, err, "%s: a token under a known key stays good", name)
		// A set that failed is read again too, each second at most; a machine that does much else may need many for this.
		most := 2 + int64(time.Since(began)/time.Second)
		require.LessOrEqual(t, s.count("/.well-known/jwks.json")-before, most, "%s: unknown kids cost at most a request in a cool-down", name)
	}
}

// withKID is token with another header.
func withKID(token, kid string) string {
	_, rest, _ := strings.Cut(token, ".")
	return encode(`{"alg":"ES256","kid":"`+kid+`","typ":"at+jwt"}`) + "." + rest
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	good := remote.Config{Issuer: "https://auth.example.com", Audience: "a", Client: apitoken.ClientAuth{ID: "c", Secret: apitoken.NewSecret("s")}}
	for field, change := range map[string]func(*remote.Config){
		"Issuer":   func(c *remote.Config) { c.Issuer = "http://auth.example.com" },
		"Audience": func(c *remote.Config) { c.Audience = "" },
		"Client":   func(c *remote.Config) { c.Client = apitoken.ClientAuth{} },
	} {
		c := good
		change(&c)
		_, err := remote.NewValidator(c)
		var e *apitoken.ConfigError
		require.ErrorAs(t, err, &e, field)
		require.Equal(t, field, e.Field)
		require.Contains(t, err.Error(), field)
	}
}

func TestMetadataOfAnotherIssuer(t *testing.T) {
	t.Parallel()
	for name, doc := range map[string]string{
		"another issuer":           `{"issuer":"https://evil.example.com","jwks_uri":"%[1]s/j","apitoken_revocations_endpoint":"%[1]s/r"}`,
		"feed at another origin":   `{"issuer":"%[1]s","jwks_uri":"%[1]s/j","apitoken_revocations_endpoint":"https://evil.example.com/r"}`,
		"jwks over http elsewhere": `{"issuer":"%[1]s","jwks_uri":"http://evil.example.com/j","apitoken_revocations_endpoint":"%[1]s/r"}`,
	} {
		var asked atomic.Int64
		var url string
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/.well-known/") {
				asked.Add(1)
				_, _ = fmt.Fprintf(w, doc, url)
				return
			}
			t.Errorf("%s: asked for %s", name, r.URL.Path)
		}))
		url = srv.URL
		v, err := remote.NewValidator(remote.Config{Issuer: url, Audience: "a", Client: apitoken.ClientAuth{ID: "c", Secret: apitoken.NewSecret("s")}})
		require.NoError(t, err)
		eventually(t, "it asks", func() bool { return asked.Load() >= 2 })
		require.NoError(t, v.Close())
		srv.Close()
	}
}

func TestEnginesAreNotLinked(t *testing.T) {
	t.Parallel()
	// The point of a remote validator: no store in the binary.
	out := deps(t, "github.com/apitoken-go/apitoken/remote")
	require.NotContains(t, out, "go.etcd.io/bbolt")
}

func TestManyValidatorsOneIssuer(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	const n = 20
	var list []*remote.Validator
	for range n {
		list = append(list, s.validator(t, nil))
	}
	for _, v := range list {
		ready(t, v)
	}
	token := s.issue(t, "alice")
	for _, v := range list {
		_, err := v.Validate(s.ctx, apitoken.Bearer(token))
		require.NoError(t, err)
	}
	require.NoError(t, s.svc.Revoke(s.ctx, apitoken.Everything(), "drill"))
	for _, v := range list {
		eventually(t, "everywhere", refused(v, token, apitoken.ErrRevoked))
	}
}

func encode(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func deps(t *testing.T, pkg string) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps", pkg).CombinedOutput()
	require.NoError(t, err, string(out))
	return string(out)
}

// counted counts what its store is asked.
type counted struct {
	store.Store
	asked atomic.Int64
}

func (c *counted) Get(ctx context.Context, k store.Kind, id string) (store.Record, error) {
	c.asked.Add(1)
	return c.Store.Get(ctx, k, id)
}

func (c *counted) Follow(ctx context.Context, p store.Position, kinds []store.Kind, max int) (store.View, error) {
	c.asked.Add(1)
	return c.Store.Follow(ctx, p, kinds, max)
}

func (c *counted) List(ctx context.Context, q store.Query) (store.Page, error) {
	c.asked.Add(1)
	return c.Store.List(ctx, q)
}

// A hundred validators that start at once, with hundreds of rules to read, are served from the issuer's memory.
func TestAStampedeReadsNoStore(t *testing.T) {
	t.Parallel()
	var st *counted
	s := newSite(t, func(c *apitoken.Config) {
		st = &counted{Store: c.Store}
		c.Store = st
		c.Validation.MaxStaleness = time.Hour // so that its own polls are few
	})
	for n := range 500 {
		require.NoError(t, s.svc.Revoke(s.ctx, apitoken.ByToken(fmt.Sprint("token-", n)), "drill"))
	}
	token := s.issue(t, "alice")
	before := st.asked.Load()
	const n = 100
	list := make([]*remote.Validator, n)
	for i := range list {
		list[i] = s.validator(t, func(c *remote.Config) { c.Validation.MaxStaleness = time.Hour })
	}
	for _, v := range list {
		ready(t, v)
		_, err := v.Validate(s.ctx, apitoken.Bearer(token))
		require.NoError(t, err)
	}
	require.Less(t, st.asked.Load()-before, int64(n/3), "the store is read for each of them")
	require.NoError(t, s.svc.Revoke(s.ctx, apitoken.BySubject("alice"), "drill"))
	for _, v := range list {
		eventually(t, "everywhere", refused(v, token, apitoken.ErrRevoked))
	}
}

// A validator's bound may be tighter than its issuer's: the feed does not hand on a view that is older than asked for.
func TestTheFeedIsAsFreshAsAskedFor(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	s := newSite(t, func(c *apitoken.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		c.Validation.MaxStaleness = time.Hour // it polls every five seconds
	})
	ask := func(query string) (age int64) {
		r, err := http.NewRequest(http.MethodGet, s.url+"/apitoken/revocations?after=0.0&nonce=n"+query, nil)
		require.NoError(t, err)
		r.SetBasicAuth(s.auth.ID, s.auth.Secret.Reveal())
		res, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		var answer struct {
			Age int64 `json:"age_ms"`
		}
		require.NoError(t, json.Unmarshal([]byte(readAll(t, res)), &answer))
		return answer.Age
	}
	hour := time.Hour.Milliseconds()
	ahead.Store(int64(time.Hour))
	require.Less(t, ask("&fresh=60000"), hour/2)
	ahead.Store(int64(2 * time.Hour))
	require.Less(t, ask(""), hour/2)
}

// Close leaves nothing behind: no goroutine, no connection, whatever was under way.
func TestCloseLeavesNothing(t *testing.T) { // alone: it counts goroutines
	s := newSite(t, nil)
	hang := make(chan struct{})
	slow := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	})
	before := stacks()
	for _, what := range []string{"idle", "feed hangs", "keys hang"} {
		s.feed.Store(nil)
		s.jwks.Store(nil)
		v, err := remote.NewValidator(remote.Config{Issuer: s.url, Audience: "https://api.example.com", Client: s.auth})
		require.NoError(t, err)
		ready(t, v)
		switch what {
		case "feed hangs":
			s.feed.Store(&slow)
		case "keys hang":
			s.jwks.Store(&slow)
		}
		_, secret, err := s.svc.APIKeys.Create(s.ctx, apitoken.APIKeyRequest{Subject: "bob"})
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(s.ctx, time.Millisecond)
		_, _ = v.Validate(ctx, apitoken.Bearer(secret.Reveal()))
		cancel()
		require.NoError(t, v.Close())
		_, err = v.Validate(s.ctx, apitoken.Bearer(secret.Reveal()+"x"))
		require.Error(t, err)
	}
	close(hang)
	eventually(t, "all of it has ended", func() bool { return stacks() <= before })
}

// stacks counts the goroutines of this module and of connections that clients hold.
func stacks() int {
	buf := make([]byte, 1<<22)
	n := 0
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "apitoken.(*trust)") || strings.Contains(g, "flightcache.(*Cache") || strings.Contains(g, "remote.(*site)") || strings.Contains(g, "http.(*persistConn)") {
			n++
		}
	}
	return n
}

// An issuer whose metadata hang, or are gone, still feeds those who know them.
func TestMetadataThatHangHoldUpNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com/tenant/", Audience: "a", Store: memstore.New(), InsecureKeysInStore: true,
			Validation: apitoken.Validation{MaxStaleness: time.Second}})
		require.NoError(t, err)
		defer svc.Close()
		c, secret, err := svc.Clients.Create(context.Background(), apitoken.Client{ID: "orders", GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{remote.FollowScope}})
		require.NoError(t, err)
		h := remote.Handler(svc)
		var hangs atomic.Bool
		v, err := remote.NewValidator(remote.Config{
			Issuer: "https://auth.example.com/tenant/", Audience: "a", Client: apitoken.ClientAuth{ID: c.ID, Secret: secret},
			Validation: apitoken.Validation{MaxStaleness: 3 * time.Second},
			HTTP: &http.Client{Transport: tripper(func(r *http.Request) (*http.Response, error) {
				if strings.HasPrefix(r.URL.Path, "/.well-known/oauth") && hangs.Load() {
					<-r.Context().Done()
					return nil, r.Context().Err()
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				return w.Result(), nil
			})},
		})
		require.NoError(t, err)
		defer v.Close()
		require.NoError(t, v.Ready(context.Background()))
		hangs.Store(true)
		for range 200 { // over an hour: by then they are read again
			time.Sleep(time.Minute)
			require.Less(t, v.Freshness().Age, 3*time.Second)
		}
		i, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice"})
		require.NoError(t, err)
		_, err = v.Validate(context.Background(), apitoken.Bearer(i.Access.Reveal()))
		require.NoError(t, err)
	})
}

// A host's own client may give a request less time than a poll takes: then the poll takes less, and the view stays fresh.
func TestAClientInAHurry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "a", Store: memstore.New(), InsecureKeysInStore: true})
		require.NoError(t, err)
		defer svc.Close()
		c, secret, err := svc.Clients.Create(context.Background(), apitoken.Client{ID: "orders", GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{remote.FollowScope}})
		require.NoError(t, err)
		h := remote.Handler(svc)
		v, err := remote.NewValidator(remote.Config{
			Issuer: "https://auth.example.com", Audience: "a", Client: apitoken.ClientAuth{ID: c.ID, Secret: secret}, Validation: apitoken.Validation{MaxStaleness: 30 * time.Second},
			HTTP: &http.Client{Timeout: 2 * time.Second, Transport: tripper(func(r *http.Request) (*http.Response, error) {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				if err := r.Context().Err(); err != nil {
					return nil, err
				}
				return w.Result(), nil
			})},
		})
		require.NoError(t, err)
		defer v.Close()
		require.NoError(t, v.Ready(context.Background()))
		for range 60 {
			time.Sleep(3 * time.Second)
			require.Less(t, v.Freshness().Age, 10*time.Second)
		}
	})
}

type tripper func(*http.Request) (*http.Response, error)

func (f tripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestKeySetsOfOthers(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `{"keys":[],"asked":%q}`, r.URL.RawQuery)
	}))
	t.Cleanup(srv.Close)
	doc, err := remote.Keys(srv.URL+"/keys?p=policy", nil).JWKS(context.Background(), "")
	require.NoError(t, err)
	require.Contains(t, string(doc), "p=policy", "some issuers have a query in it")
	for _, bad := range []string{"", "auth.example.com", "http://auth.example.com/keys", "ftp://auth.example.com/keys", "https://user@auth.example.com/keys"} {
		_, err := remote.Keys(bad, nil).JWKS(context.Background(), "")
		require.ErrorContains(t, err, "https", bad)
	}
}

// A key set may be of two validators: where the answer to one hangs, the other gets its own. And nothing is taken for "as before"
// that was not asked for so.
func TestKeySetThatIsShared(t *testing.T) {
	t.Parallel()
	release, hangs := make(chan struct{}), make(chan struct{})
	var n, asked atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch n.Add(1) {
		case 1:
			close(hangs)
			<-release
		case 2:
		case 3:
			if r.Header.Get("If-None-Match") != "" {
				asked.Add(1)
			}
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = w.Write([]byte(`{"keys":[]}`)) // without ETag
	}))
	t.Cleanup(srv.Close)
	keys := remote.Keys(srv.URL, nil)
	first := make(chan error, 1)
	go func() { _, err := keys.JWKS(context.Background(), ""); first <- err }()
	<-hangs
	_, err := keys.JWKS(context.Background(), "")
	require.NoError(t, err)
	_, err = keys.JWKS(context.Background(), "")
	require.ErrorContains(t, err, "304")
	require.Zero(t, asked.Load())
	close(release)
	require.NoError(t, <-first)
}

// A service that is closed hands on nothing, and does not answer its followers in a hurry either.
func TestTheFeedOfAClosedService(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	view, err := s.svc.Revocations(s.ctx, store.Position{}, 0)
	require.NoError(t, err)
	require.NoError(t, s.svc.Close())
	r, err := http.NewRequest(http.MethodGet, fmt.Sprintf("%s/apitoken/revocations?after=%x.%x&nonce=n&wait=20000", s.url, view.Next.History, view.Next.N), nil)
	require.NoError(t, err)
	r.SetBasicAuth(s.auth.ID, s.auth.Secret.Reveal())
	res, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	readAll(t, res)
	require.Equal(t, http.StatusServiceUnavailable, res.StatusCode)
	require.NotEmpty(t, res.Header.Get("Retry-After"))
}
