package dpopclient_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/dpopclient"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/oauthhttp"
	"github.com/apitoken-go/apitoken/store/memstore"
)

const (
	callback = "https://app.example.com/cb"
	verifier = "0123456789-0123456789-0123456789-0123456789-abc"
)

// site is oauthhttp and an API behind httpauth, both of which want nonces, on a server of its own.
type site struct {
	*httptest.Server
	t      *testing.T
	svc    *apitoken.Service
	tokens atomic.Int64  // requests of the token endpoint that it accepted
	calls  atomic.Int64  // requests of the API that it accepted
	broken atomic.Bool   // the token endpoint answers 500
	slow   chan struct{} // if not nil, the token endpoint waits for it
}

func serve(t *testing.T) *site {
	t.Helper()
	s := &site{t: t}
	mux := http.NewServeMux()
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	var err error
	s.svc, err = apitoken.New(apitoken.Config{Issuer: s.URL, Audience: s.URL, Store: memstore.New(), InsecureKeysInStore: true,
		Refresh:    apitoken.RefreshPolicy{Grace: -1, RotateConfidential: true}, // each refresh token is good once
		Validation: apitoken.Validation{RequireProofNonce: true}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.svc.Close()) })
	for id, grants := range map[string][]string{
		"app": {"authorization_code", "refresh_token"}, "web": {"authorization_code", "refresh_token"}, "machine": {"client_credentials"},
	} {
		c := apitoken.Client{ID: id, Public: id == "app", GrantTypes: grants, Scopes: apitoken.Scopes{"orders:read"}, BindDPoP: true}
		if id != "machine" {
			c.RedirectURIs = []string{callback}
		}
		_, secret, err := s.svc.Clients.Create(t.Context(), c)
		require.NoError(t, err)
		secrets.Store(s.URL+id, secret.Reveal())
	}
	var oauth *oauthhttp.Handler
	oauth, err = oauthhttp.New(s.svc, &oauthhttp.Options{RequireNonce: true, Consent: oauthhttp.ConsentFunc(func(w http.ResponseWriter, r *http.Request, a *oauthhttp.Authorization) {
		oauth.Approve(w, r, a, oauthhttp.Approval{Subject: "alice", Scopes: oauthhttp.All()})
	})})
	require.NoError(t, err)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			if s.broken.Load() {
				http.Error(w, "broken", http.StatusInternalServerError)
				return
			}
			if s.slow != nil {
				<-s.slow
			}
			w = &counting{ResponseWriter: w, good: &s.tokens}
		}
		oauth.ServeHTTP(w, r)
	})
	auth := httpauth.New(s.svc, &httpauth.Options{BaseURL: s.URL})
	mux.Handle("/orders", auth.Require("orders:read")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.calls.Add(1)
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s", apitoken.FromContext(r.Context()).Subject(), body)
	})))
	return s
}

var secrets sync.Map // of clients, by server and ID

// counting counts the answers that are 200.
type counting struct {
	http.ResponseWriter
	good *atomic.Int64
}

func (w *counting) WriteHeader(status int) {
	if status == http.StatusOK {
		w.good.Add(1)
	}
	w.ResponseWriter.WriteHeader(status)
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

func (s *site) client(change ...func(*dpopclient.Config)) *dpopclient.Client {
	s.t.Helper()
	prover, err := dpopclient.NewProver(newKey(s.t), nil)
	require.NoError(s.t, err)
	c := dpopclient.Config{Prover: prover, TokenURL: s.URL + "/token", ClientID: "app", APIs: []string{s.URL}}
	for _, f := range change {
		f(&c)
	}
	client, err := dpopclient.New(c)
	require.NoError(s.t, err)
	return client
}

// code is an authorization code for alice.
func (s *site) code(client string) url.Values {
	s.t.Helper()
	sum := sha256.Sum256([]byte(verifier))
	q := url.Values{"response_type": {"code"}, "client_id": {client}, "redirect_uri": {callback}, "scope": {"orders:read"},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}, "code_challenge_method": {"S256"}}
	browser := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	answer, err := browser.Get(s.URL + "/authorize?" + q.Encode())
	require.NoError(s.t, err)
	require.NoError(s.t, answer.Body.Close())
	to, err := answer.Location()
	require.NoError(s.t, err)
	require.NotEmpty(s.t, to.Query().Get("code"), to)
	return url.Values{"grant_type": {"authorization_code"}, "code": {to.Query().Get("code")}, "redirect_uri": {callback}, "code_verifier": {verifier}}
}

// read sends one request and returns what the API answers.
func read(t *testing.T, rt http.RoundTripper, url string) (int, string, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	answer, err := (&http.Client{Transport: rt}).Do(r)
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return answer.StatusCode, string(body), nil
}

// shelf is a Store, whose Save may fail.
type shelf struct {
	mu    sync.Mutex
	t     dpopclient.Tokens
	saves int
	fail  error
}

func (s *shelf) Load(context.Context) (dpopclient.Tokens, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.t, nil
}

func (s *shelf) Save(_ context.Context, t dpopclient.Tokens) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	s.t, s.saves = t, s.saves+1
	return nil
}

func (s *shelf) put(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *shelf) now() dpopclient.Tokens {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.t
}

func TestALoginThenRequestsThenANewProcess(t *testing.T) {
	t.Parallel()
	s, store, key := serve(t), &shelf{}, newKey(t)
	keep := func(c *dpopclient.Config) {
		var err error
		c.Prover, err = dpopclient.NewProver(key, nil)
		require.NoError(t, err)
		c.Store = store
	}
	client := s.client(keep)
	_, _, err := read(t, client, s.URL+"/orders")
	require.ErrorIs(t, err, dpopclient.ErrSignIn)

	require.NoError(t, client.Grant(t.Context(), s.code("app")))
	for range 3 {
		status, body, err := read(t, client, s.URL+"/orders?page=2")
		require.NoError(t, err)
		require.Equal(t, 200, status)
		require.Equal(t, "alice ", body)
	}
	require.EqualValues(t, 1, s.tokens.Load())

	// The access token ends while nobody runs.
	store.put(func() { store.t.Renew = time.Now().Add(-time.Second) })
	old := store.now()
	status, _, err := read(t, s.client(keep), s.URL+"/orders")
	require.NoError(t, err)
	require.Equal(t, 200, status)
	require.EqualValues(t, 2, s.tokens.Load())
	require.NotEqual(t, old.Access, store.now().Access, "the new tokens are kept")
	require.NotEqual(t, old.Refresh, store.now().Refresh)
	life := time.Until(store.now().Renew)
	require.Greater(t, life, time.Duration(0))
}

func TestOneRefreshHoweverManyWait(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*site, *shelf){
		// known: by the clock. refused: only the API knows.
		"known": func(_ *site, store *shelf) { store.put(func() { store.t.Renew = time.Now().Add(-time.Second) }) },
		"refused": func(_ *site, store *shelf) {
			store.put(func() { store.t.Access = store.t.Access[:len(store.t.Access)-4] + "AAAA" })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, store, key := serve(t), &shelf{}, newKey(t)
			keep := func(c *dpopclient.Config) {
				var err error
				c.Prover, err = dpopclient.NewProver(key, nil)
				require.NoError(t, err)
				c.Store = store
			}
			require.NoError(t, s.client(keep).Grant(t.Context(), s.code("app")))
			end(s, store)
			client := s.client(keep)
			var all sync.WaitGroup
			for range 100 {
				all.Go(func() {
					r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+"/orders", strings.NewReader("body"))
					if !assert.NoError(t, err) {
						return
					}
					answer, err := (&http.Client{Transport: client}).Do(r)
					if !assert.NoError(t, err) {
						return
					}
					defer answer.Body.Close()
					body, _ := io.ReadAll(answer.Body)
					assert.Equal(t, "alice body", string(body))
				})
			}
			all.Wait()
			require.EqualValues(t, 2, s.tokens.Load(), "the login and one refresh")
			require.EqualValues(t, 100, s.calls.Load())
		})
	}
}

func TestARequestThatEndsDoesNotEndTheRefresh(t *testing.T) {
	t.Parallel()
	s, store := serve(t), &shelf{}
	client := s.client(func(c *dpopclient.Config) { c.Store = store })
	require.NoError(t, client.Grant(t.Context(), s.code("app")))
	ended := store.now().Access
	s.slow = make(chan struct{})
	again := s.client(func(c *dpopclient.Config) { c.Store, c.Prover = store, proverOf(client) })
	store.put(func() { store.t.Renew = time.Now() })
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/orders", nil)
	require.NoError(t, err)
	gone := make(chan error, 1)
	go func() {
		_, err := again.RoundTrip(r)
		gone <- err
	}()
	s.slow <- struct{}{} // the first try, which lacks nothing but a nonce or has one
	cancel()
	require.ErrorIs(t, <-gone, context.Canceled)
	close(s.slow)
	status, _, err := read(t, again, s.URL+"/orders")
	require.NoError(t, err)
	require.Equal(t, 200, status)
	require.NotEqual(t, ended, store.now().Access)
	require.EqualValues(t, 2, s.tokens.Load(), "what was begun for the one served the other")
}

func proverOf(c *dpopclient.Client) *dpopclient.Prover { return dpopclient.ProverOf(c) }

func TestASessionThatIsOverAsksOnce(t *testing.T) {
	t.Parallel()
	s, store := serve(t), &shelf{}
	client := s.client(func(c *dpopclient.Config) { c.Store = store })
	require.NoError(t, client.Grant(t.Context(), s.code("app")))
	require.NoError(t, s.svc.Revoke(t.Context(), apitoken.BySubject("alice"), "left"))
	for range 3 {
		_, _, err := read(t, client, s.URL+"/orders")
		require.ErrorIs(t, err, dpopclient.ErrSignIn)
		var answered *dpopclient.Error
		require.ErrorAs(t, err, &answered)
		require.Equal(t, "invalid_grant", answered.Code)
	}
	// Another login, as of another user, ends that.
	require.NoError(t, client.Grant(t.Context(), s.code("app")))
	status, _, err := read(t, client, s.URL+"/orders")
	require.NoError(t, err)
	require.Equal(t, 200, status)
}

func TestTwoProcessesShareAStore(t *testing.T) {
	t.Parallel()
	s, store, key := serve(t), &shelf{}, newKey(t)
	keep := func(c *dpopclient.Config) {
		var err error
		c.Prover, err = dpopclient.NewProver(key, nil)
		require.NoError(t, err)
		c.Store = store
	}
	one, two := s.client(keep), s.client(keep)
	require.NoError(t, one.Grant(t.Context(), s.code("app")))
	for range 3 {
		for _, c := range []*dpopclient.Client{one, two} {
			status, _, err := read(t, c, s.URL+"/orders")
			require.NoError(t, err)
			require.Equal(t, 200, status)
		}
		store.put(func() { store.t.Renew = time.Now() })
	}
}

func TestTokensThatCouldNotBeSavedAreSavedBeforeTheyAreUsed(t *testing.T) {
	t.Parallel()
	s, store := serve(t), &shelf{fail: errors.New("the disk is full")}
	client := s.client(func(c *dpopclient.Config) { c.Store = store })
	require.ErrorContains(t, client.Grant(t.Context(), s.code("app")), "the disk is full")
	_, _, err := read(t, client, s.URL+"/orders")
	require.ErrorContains(t, err, "the disk is full")
	require.Zero(t, s.calls.Load())
	store.put(func() { store.fail = nil })
	status, _, err := read(t, client, s.URL+"/orders")
	require.NoError(t, err)
	require.Equal(t, 200, status)
	require.EqualValues(t, 1, s.tokens.Load(), "nothing was lost")
	require.NotEmpty(t, store.now().Refresh)
}

func TestATokenEndpointThatFailsEndsNothing(t *testing.T) {
	t.Parallel()
	s, store := serve(t), &shelf{}
	client := s.client(func(c *dpopclient.Config) { c.Store = store })
	require.NoError(t, client.Grant(t.Context(), s.code("app")))
	fresh := s.client(func(c *dpopclient.Config) { c.Store, c.Prover = store, proverOf(client) })
	store.put(func() { store.t.Renew = time.Now() })
	s.broken.Store(true)
	_, _, err := read(t, fresh, s.URL+"/orders")
	var answered *dpopclient.Error
	require.ErrorAs(t, err, &answered)
	require.Equal(t, 500, answered.Status)
	require.NotErrorIs(t, err, dpopclient.ErrSignIn)
	s.broken.Store(false)
	status, _, err := read(t, fresh, s.URL+"/orders")
	require.NoError(t, err)
	require.Equal(t, 200, status)
}

func TestAMachineGetsItsTokensByItself(t *testing.T) {
	t.Parallel()
	s := serve(t)
	secret, _ := secrets.Load(s.URL + "machine")
	client := s.client(func(c *dpopclient.Config) {
		c.ClientID, c.ClientSecret = "machine", secret.(string)
		c.Machine = url.Values{"grant_type": {"client_credentials"}, "scope": {"orders:read"}}
	})
	for range 3 {
		status, body, err := read(t, client, s.URL+"/orders")
		require.NoError(t, err)
		require.Equal(t, 200, status)
		require.Equal(t, "machine ", body)
	}
	require.EqualValues(t, 1, s.tokens.Load())
}

func TestAuthenticateAddsToTheForm(t *testing.T) {
	t.Parallel()
	s := serve(t)
	secret, _ := secrets.Load(s.URL + "web")
	form := s.code("web")
	client := s.client(func(c *dpopclient.Config) {
		c.ClientID = "web"
		c.Authenticate = func(_ context.Context, form url.Values) error {
			form.Set("client_secret", secret.(string))
			return nil
		}
	})
	require.NoError(t, client.Grant(t.Context(), form))
	require.NotContains(t, form, "client_secret", "the caller's form is not changed")
	status, _, err := read(t, client, s.URL+"/orders")
	require.NoError(t, err)
	require.Equal(t, 200, status)
}

func TestOtherServersGetNoToken(t *testing.T) {
	t.Parallel()
	s := serve(t)
	var seen http.Header
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = r.Header.Clone() }))
	t.Cleanup(other.Close)
	away := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	t.Cleanup(away.Close)
	client := s.client(func(c *dpopclient.Config) { c.APIs = append(c.APIs, away.URL) })
	require.NoError(t, client.Grant(t.Context(), s.code("app")))
	status, _, err := read(t, client, away.URL)
	require.NoError(t, err)
	require.Equal(t, 200, status)
	require.Empty(t, seen["Authorization"])
	require.Empty(t, seen["Dpop"])
}

// fake is a token endpoint that answers as it is told.
func fake(t *testing.T, h http.HandlerFunc) *dpopclient.Client {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	prover, err := dpopclient.NewProver(newKey(t), nil)
	require.NoError(t, err)
	c, err := dpopclient.New(dpopclient.Config{Prover: prover, TokenURL: server.URL, ClientID: "app", APIs: []string{server.URL}})
	require.NoError(t, err)
	return c
}

func TestAnswersOfATokenEndpointThatAreNotTaken(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct{ body, want string }{
		"a bearer token": {`{"access_token":"secret-1","token_type":"Bearer"}`, "not DPoP"},
		"no type":        {`{"access_token":"secret-1"}`, "not DPoP"},
		"no token":       {`{"token_type":"DPoP"}`, "no access token"},
		"no JSON":        {`access_token=secret-1`, "no JSON"},
		"nothing":        {``, "no JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := fake(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, x.body) }).Grant(t.Context(), url.Values{})
			require.ErrorContains(t, err, x.want)
			require.NotContains(t, err.Error(), "secret-1")
		})
	}
	stolen := make(chan struct{}, 1)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { stolen <- struct{}{} }))
	t.Cleanup(elsewhere.Close)
	err := fake(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
	}).Grant(t.Context(), url.Values{"code": {"c"}})
	var answered *dpopclient.Error
	require.ErrorAs(t, err, &answered)
	require.Empty(t, stolen, "a redirect is not followed")
}

// TestNoncesAreFollowed: a server that changes its nonce with each answer, and one that asks for nonces without end.
func TestNoncesAreFollowed(t *testing.T) {
	t.Parallel()
	prover, err := dpopclient.NewProver(newKey(t), nil)
	require.NoError(t, err)
	n, asked := 0, 0
	handler := func(w http.ResponseWriter, r *http.Request) {
		asked++
		want := fmt.Sprintf("n-%d", n)
		n++
		w.Header().Set("DPoP-Nonce", fmt.Sprintf("n-%d", n))
		if r.URL.Path == "/never" || nonceOf(t, r) != want {
			w.Header().Set("WWW-Authenticate", `DPoP error="use_dpop_nonce"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}
	server := httptest.NewServer(http.HandlerFunc(handler))
	t.Cleanup(server.Close)
	for _, want := range []int{2, 1, 1} { // the first one has no nonce yet
		asked = 0
		status, _, err := read(t, prover, server.URL+"/")
		require.NoError(t, err)
		require.Equal(t, 200, status)
		require.Equal(t, want, asked)
	}
	asked = 0
	status, _, err := read(t, prover, server.URL+"/never")
	require.NoError(t, err)
	require.Equal(t, 401, status)
	require.Equal(t, 3, asked)

	// A body that cannot be had again is not repeated, and its answer is the caller's.
	asked = 0
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/never", io.NopCloser(strings.NewReader("once")))
	require.NoError(t, err)
	answer, err := prover.RoundTrip(r)
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
	require.Equal(t, 1, asked)
}

func nonceOf(t *testing.T, r *http.Request) string {
	part := strings.Split(r.Header.Get("DPoP"), ".")
	require.Len(t, part, 3)
	raw, err := base64.RawURLEncoding.DecodeString(part[1])
	require.NoError(t, err)
	var c struct{ Nonce string }
	require.NoError(t, json.Unmarshal(raw, &c))
	return c.Nonce
}

func TestTheBodyOfARefusalCanStillBeRead(t *testing.T) {
	t.Parallel()
	prover, err := dpopclient.NewProver(newKey(t), nil)
	require.NoError(t, err)
	long := strings.Repeat("x", 300<<10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("DPoP-Nonce", r.URL.Path)
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, long)
	}))
	t.Cleanup(server.Close)
	status, body, err := read(t, prover, server.URL)
	require.NoError(t, err)
	require.Equal(t, 400, status)
	require.Equal(t, long, body)
}

// outside is a key that lives elsewhere: nothing but crypto.Signer.
type outside struct{ crypto.Signer }

func TestEveryKindOfKeyMakesProofsThatAreTaken(t *testing.T) {
	t.Parallel()
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	s := serve(t)
	for name, key := range map[string]crypto.Signer{"P-256": newKey(t), "P-384": p384, "Ed25519": ed, "RSA": rsaKey, "outside": outside{newKey(t)}, "RSA outside": outside{rsaKey}} {
		client := s.client(func(c *dpopclient.Config) {
			c.Prover, err = dpopclient.NewProver(key, nil)
			require.NoError(t, err, name)
		})
		require.NoError(t, client.Grant(t.Context(), s.code("app")), name)
		status, _, err := read(t, client, s.URL+"/orders")
		require.NoError(t, err)
		require.Equal(t, 200, status, name)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	require.NoError(t, err)
	for _, key := range []crypto.Signer{nil, p224} {
		_, err := dpopclient.NewProver(key, nil)
		require.Error(t, err)
	}
}

func TestBearerRequestsPassAsTheyAre(t *testing.T) {
	t.Parallel()
	prover, err := dpopclient.NewProver(newKey(t), nil)
	require.NoError(t, err)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { assert.Empty(t, r.Header["Dpop"]) }))
	t.Cleanup(server.Close)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
	require.NoError(t, err)
	r.Header.Set("Authorization", "Bearer x")
	answer, err := prover.RoundTrip(r)
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
}

func TestConfigsThatCannotBe(t *testing.T) {
	t.Parallel()
	prover, err := dpopclient.NewProver(newKey(t), nil)
	require.NoError(t, err)
	good := dpopclient.Config{Prover: prover, TokenURL: "https://auth.example.com/token", ClientID: "app", APIs: []string{"https://api.example.com"}}
	_, err = dpopclient.New(good)
	require.NoError(t, err)
	for name, change := range map[string]func(*dpopclient.Config){
		"no prover":         func(c *dpopclient.Config) { c.Prover = nil },
		"no client":         func(c *dpopclient.Config) { c.ClientID = "" },
		"no APIs":           func(c *dpopclient.Config) { c.APIs = nil },
		"an API with path":  func(c *dpopclient.Config) { c.APIs = []string{"https://api.example.com/v1"} },
		"an API over http":  func(c *dpopclient.Config) { c.APIs = []string{"http://api.example.com"} },
		"no token endpoint": func(c *dpopclient.Config) { c.TokenURL = "" },
		"one over http":     func(c *dpopclient.Config) { c.TokenURL = "http://auth.example.com/token" },
		"no URL":            func(c *dpopclient.Config) { c.TokenURL = "https://" },
	} {
		c := good
		change(&c)
		_, err := dpopclient.New(c)
		require.Error(t, err, name)
	}
}

func TestTokensStayOutOfLogs(t *testing.T) {
	t.Parallel()
	tokens := dpopclient.Tokens{Access: "secret-1", Refresh: "secret-2"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		require.NotContains(t, fmt.Sprintf(verb, tokens), "secret")
	}
	require.NotContains(t, tokens.LogValue().String(), "secret")
	doc, err := json.Marshal(tokens)
	require.NoError(t, err)
	var back dpopclient.Tokens
	require.NoError(t, json.Unmarshal(doc, &back))
	require.Equal(t, tokens, back, "a Store can keep them as JSON")
}

// panicking is a Store of a careless host.
type panicking struct{ dpopclient.Store }

func TestAStoreThatPanicsFailsTheRequest(t *testing.T) {
	t.Parallel()
	s := serve(t)
	_, _, err := read(t, s.client(func(c *dpopclient.Config) { c.Store = panicking{} }), s.URL+"/orders")
	require.ErrorContains(t, err, "panicked")
}
