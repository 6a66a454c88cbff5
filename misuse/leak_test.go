package misuse

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
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
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// failing is a store that can be made to fail.
type failing struct {
	store.Store
	broken atomic.Bool
}

func (f *failing) Get(ctx context.Context, k store.Kind, id string) (store.Record, error) {
	if f.broken.Load() {
		return store.Record{}, errors.New("no connection")
	}
	return f.Store.Get(ctx, k, id)
}

func (f *failing) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	if f.broken.Load() {
		return store.Commit{}, errors.New("no connection")
	}
	return f.Store.Apply(ctx, c)
}

// leakHouse is a service with tokens of each kind.
type leakHouse struct {
	svc    *apitoken.Service
	st     *failing
	grant  string
	access string
	refresh,
	apikey string

	mu    sync.Mutex // guards leaks
	leaks []Leak
}

func newLeakHouse(t *testing.T) *leakHouse {
	t.Helper()
	h := &leakHouse{st: &failing{Store: memstore.New()}}
	var err error
	h.svc, err = apitoken.New(apitoken.Config{Issuer: issuer, Audience: "https://api.example.com", Store: h.st, InsecureKeysInStore: true})
	require.NoError(t, err)
	t.Cleanup(func() { h.st.broken.Store(false); _ = h.svc.Close() })
	i, err := h.svc.Issue(t.Context(), apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
	require.NoError(t, err)
	_, key, err := h.svc.APIKeys.Create(t.Context(), apitoken.APIKeyRequest{Subject: "alice", Name: "ci", Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	h.grant, h.access, h.refresh, h.apikey = i.Token.Grant(), i.Access.Reveal(), i.Refresh.Reveal(), key.Reveal()
	return h
}

func (h *leakHouse) notify(_ context.Context, l Leak) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leaks = append(h.leaks, l)
}

func (h *leakHouse) told() []Leak {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Leak(nil), h.leaks...)
}

func (h *leakHouse) alive(t *testing.T, token string) bool {
	t.Helper()
	_, err := h.svc.Validate(t.Context(), apitoken.Bearer(token))
	if err != nil {
		require.ErrorIs(t, err, apitoken.ErrInvalidToken)
	}
	return err == nil
}

func (h *leakHouse) leaked(t *testing.T) (n int) {
	t.Helper()
	for _, err := range h.svc.Events(t.Context(), apitoken.EventQuery{Type: event.Leaked}) {
		require.NoError(t, err)
		n++
	}
	return n
}

// scanner signs reports as the program does, and publishes its key.
type scanner struct {
	t     *testing.T
	key   *ecdsa.PrivateKey
	id    string
	asked atomic.Int32
	down  atomic.Bool
	*httptest.Server
}

func newScanner(t *testing.T) *scanner {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	s := &scanner{t: t, key: key, id: "f9525bf080f75b3506ca1ead061add62b8633a346606dc5fe544e29231c6ee0d"}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s.asked.Add(1)
		if s.down.Load() {
			http.Error(w, "rate limited", http.StatusForbidden)
			return
		}
		der, err := x509.MarshalPKIXPublicKey(&s.key.PublicKey)
		if err != nil {
			panic(err)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"public_keys": []map[string]any{
			{"key_identifier": "other", "key": "not PEM", "is_current": false},
			{"key_identifier": s.id, "key": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), "is_current": true},
		}})
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *scanner) sign(body string) http.Header {
	sum := sha256.Sum256([]byte(body))
	sig, err := ecdsa.SignASN1(rand.Reader, s.key, sum[:])
	require.NoError(s.t, err)
	h := http.Header{}
	h.Set("Github-Public-Key-Identifier", s.id)
	h.Set("Github-Public-Key-Signature", base64.StdEncoding.EncodeToString(sig))
	return h
}

func post(h http.Handler, header http.Header, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/leaks", strings.NewReader(body))
	for k, v := range header {
		r.Header[k] = v
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func report(tokens ...string) string {
	list := []map[string]string{}
	for _, x := range tokens {
		list = append(list, map[string]string{"token": x, "type": "example_api_token", "url": "https://github.com/octo/hello/blob/1/a.txt", "source": "commit"})
	}
	b, _ := json.Marshal(list)
	return string(b)
}

func TestScannerReportsRevoke(t *testing.T) {
	t.Parallel()
	h, s := newLeakHouse(t), newScanner(t)
	handler := NewScannerHandler(h.svc, &ScannerOptions{Keys: NewGitHubKeys(&GitHubKeysOptions{URL: s.URL}), Notify: h.notify})
	body := report(h.access, h.apikey, "at_nothing", "ghp_another")
	w := post(handler, s.sign(body), body)
	require.Equal(t, http.StatusOK, w.Code, w.Body)
	assert.False(t, h.alive(t, h.access))
	assert.False(t, h.alive(t, h.apikey))
	_, err := h.svc.Refresh(t.Context(), apitoken.RefreshRequest{Token: h.refresh})
	assert.ErrorIs(t, err, apitoken.ErrInvalidGrant, "a leaked access token ends its grant")

	var back []map[string]string
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &back))
	require.Len(t, back, 4)
	for i, x := range []string{h.access, h.apikey, "at_nothing", "ghp_another"} {
		sum := sha256.Sum256([]byte(x))
		assert.Equal(t, map[string]string{"token_hash": hex.EncodeToString(sum[:]), "token_type": "example_api_token", "label": "true_positive"}, back[i],
			"known and unknown tokens are answered alike, by hash alone")
	}
	assert.Equal(t, 2, h.leaked(t), "each is recorded")
	told := h.told()
	require.Len(t, told, 2, "and told to the host")
	assert.Equal(t, Leak{Target: apitoken.ByGrant(h.grant), By: "scanner", Type: "example_api_token", URL: "https://github.com/octo/hello/blob/1/a.txt", Source: "commit"}, told[0])

	require.Equal(t, http.StatusOK, post(handler, s.sign(body), body).Code)
	assert.Equal(t, 2, h.leaked(t), "the same report again writes nothing new")
	assert.Len(t, h.told(), 2)
}

// Client secrets and tickets end too, whoever brings them, and each secret of a client for itself.
func TestLeaksOfSecretsAndTickets(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	h, s := newLeakHouse(t), newScanner(t)
	scan := NewScannerHandler(h.svc, &ScannerOptions{Keys: NewGitHubKeys(&GitHubKeysOptions{URL: s.URL}), Notify: h.notify})
	present := NewPresentHandler(h.svc, &PresentOptions{Notify: h.notify})
	_, secret, err := h.svc.Clients.Create(ctx, apitoken.Client{ID: "web", GrantTypes: []string{"client_credentials"}})
	require.NoError(t, err)
	code, err := h.svc.Prepare(ctx, apitoken.Request{Subject: "alice"}, apitoken.Ticket{Lifetime: time.Minute})
	require.NoError(t, err)
	body := report(secret.Reveal(), code.Reveal())
	for range 2 {
		require.Equal(t, http.StatusOK, post(scan, s.sign(body), body).Code)
		require.Len(t, h.told(), 2, "told once")
		require.Equal(t, 2, h.leaked(t))
	}
	require.Equal(t, Leak{By: "scanner", Type: "example_api_token", URL: "https://github.com/octo/hello/blob/1/a.txt", Source: "commit"}, h.told()[0])
	_, err = h.svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: "web", Secret: secret})
	require.ErrorIs(t, err, apitoken.ErrInvalidClient)
	_, err = h.svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)

	fresh, err := h.svc.Clients.RotateSecret(ctx, "web", 0)
	require.NoError(t, err)
	text := http.Header{"Content-Type": {"text/plain"}}
	want := post(present, text, "nothing").Body.String()
	for _, x := range []string{fresh.Reveal()[:60], fresh.Reveal() + "0", "secret=" + fresh.Reveal(), secret.Reveal()} {
		w := post(present, text, x)
		require.Equal(t, http.StatusOK, w.Code)
		require.Equal(t, want, w.Body.String())
		_, err = h.svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: "web", Secret: fresh})
		require.NoError(t, err, "what is not the secret ends nothing")
	}
	require.Equal(t, want, post(present, text, fresh.Reveal()).Body.String())
	_, err = h.svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: "web", Secret: fresh})
	require.ErrorIs(t, err, apitoken.ErrInvalidClient)
	require.Len(t, h.told(), 3)

	again, err := h.svc.Clients.RotateSecret(ctx, "web", 0)
	require.NoError(t, err)
	h.st.broken.Store(true)
	require.Equal(t, http.StatusServiceUnavailable, post(present, text, again.Reveal()).Code)
	require.Len(t, h.told(), 3)
	_, err = h.svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: "web", Secret: again})
	require.ErrorIs(t, err, apitoken.ErrInvalidClient, "refused here, and tried again")
	h.st.broken.Store(false)
}

func TestScannerRefusesWhatIsNotSigned(t *testing.T) {
	t.Parallel()
	h, s := newLeakHouse(t), newScanner(t)
	handler := NewScannerHandler(h.svc, &ScannerOptions{Keys: NewGitHubKeys(&GitHubKeysOptions{URL: s.URL}), MaxBody: 4 << 10})
	body := report(h.apikey)
	good := s.sign(body)
	with := func(name, value string) http.Header {
		x := good.Clone()
		if value == "" {
			x.Del(name)
		} else {
			x.Set(name, value)
		}
		return x
	}
	twice := good.Clone()
	twice.Add("Github-Public-Key-Signature", good.Get("Github-Public-Key-Signature"))
	for name, x := range map[string]struct {
		header http.Header
		body   string
		status int
	}{
		"no headers":        {http.Header{}, body, http.StatusUnauthorized},
		"no signature":      {with("Github-Public-Key-Signature", ""), body, http.StatusUnauthorized},
		"no key":            {with("Github-Public-Key-Identifier", ""), body, http.StatusUnauthorized},
		"unknown key":       {with("Github-Public-Key-Identifier", "x"), body, http.StatusUnauthorized},
		"unusable key":      {with("Github-Public-Key-Identifier", "other"), body, http.StatusUnauthorized},
		"long key":          {with("Github-Public-Key-Identifier", strings.Repeat("x", 5000)), body, http.StatusUnauthorized},
		"two signatures":    {twice, body, http.StatusUnauthorized},
		"not base64":        {with("Github-Public-Key-Signature", "%%%"), body, http.StatusUnauthorized},
		"not ASN.1":         {with("Github-Public-Key-Signature", "AAAA"), body, http.StatusUnauthorized},
		"another body":      {good, body + " ", http.StatusUnauthorized},
		"empty body":        {good, "", http.StatusUnauthorized},
		"too large":         {good, strings.Repeat(" ", 5000), http.StatusRequestEntityTooLarge},
		"signed, no array":  {s.sign(`{"token":"x"}`), `{"token":"x"}`, http.StatusBadRequest},
		"signed, no JSON":   {s.sign(`[`), `[`, http.StatusBadRequest},
		"signed, and empty": {s.sign(`[]`), `[]`, http.StatusOK},
	} {
		w := post(handler, x.header, x.body)
		assert.Equal(t, x.status, w.Code, "%s: %s", name, w.Body)
	}
	r := httptest.NewRequest(http.MethodGet, "/leaks", nil)
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	assert.Equal(t, http.StatusMethodNotAllowed, w.Code)
	assert.Equal(t, "POST", w.Header().Get("Allow"))
	assert.True(t, h.alive(t, h.apikey), "nothing that is not signed revokes")
	assert.Zero(t, h.leaked(t))
}

func TestScannerHandlerAsksAgainWhenTheStoreFails(t *testing.T) {
	t.Parallel()
	h, s := newLeakHouse(t), newScanner(t)
	handler := NewScannerHandler(h.svc, &ScannerOptions{Keys: NewGitHubKeys(&GitHubKeysOptions{URL: s.URL}), Notify: h.notify})
	body := report(h.access)
	h.st.broken.Store(true)
	w := post(handler, s.sign(body), body)
	assert.Equal(t, http.StatusServiceUnavailable, w.Code, "an unwritten revocation is not acknowledged")
	assert.NotEmpty(t, w.Header().Get("Retry-After"))
	assert.Empty(t, h.told())
	h.st.broken.Store(false)
	require.Equal(t, http.StatusOK, post(handler, s.sign(body), body).Code)
	assert.False(t, h.alive(t, h.access))
	assert.Len(t, h.told(), 1)
}

func TestGitHubKeysAreFetchedWithBounds(t *testing.T) {
	t.Parallel()
	s := newScanner(t)
	now := time.Now()
	keys := NewGitHubKeys(&GitHubKeysOptions{URL: s.URL, Now: func() time.Time { return now }})
	ctx := t.Context()
	for i := range 100 {
		_, err := keys.ScannerKey(ctx, fmt.Sprint("made up ", i))
		require.ErrorIs(t, err, apitoken.ErrNotFound)
	}
	assert.Equal(t, int32(1), s.asked.Load(), "made-up names do not make us ask again and again")
	for range 10 {
		key, err := keys.ScannerKey(ctx, s.id)
		require.NoError(t, err)
		assert.True(t, key.Equal(&s.key.PublicKey))
	}
	assert.Equal(t, int32(1), s.asked.Load(), "a known key is kept")

	s.down.Store(true)
	now = now.Add(2 * time.Hour)
	_, err := keys.ScannerKey(ctx, s.id)
	require.NoError(t, err, "while nobody answers, what was known is believed")
	assert.Equal(t, int32(2), s.asked.Load(), "but it was asked for")
	_, err = keys.ScannerKey(ctx, "new")
	require.Error(t, err)
	require.NotErrorIs(t, err, apitoken.ErrNotFound, "not knowing is no answer")
	now = now.Add(25 * time.Hour)
	_, err = keys.ScannerKey(ctx, s.id)
	require.Error(t, err, "for a day")

	s.down.Store(false)
	s.id = "the next key"
	now = now.Add(time.Minute)
	_, err = keys.ScannerKey(ctx, s.id)
	require.NoError(t, err, "a new key is found when it is first used")
}

func TestGitHubKeysAreNotTakenFromARedirectInClear(t *testing.T) {
	t.Parallel()
	s := newScanner(t)
	home := httptest.NewServer(http.RedirectHandler(s.URL, http.StatusFound))
	defer home.Close()
	_, err := NewGitHubKeys(&GitHubKeysOptions{URL: home.URL}).ScannerKey(t.Context(), s.id)
	require.ErrorContains(t, err, "redirect")
	require.NotErrorIs(t, err, apitoken.ErrNotFound, "the report comes again")
	assert.Zero(t, s.asked.Load())
}

func TestScannerHandlerAsksAgainWithoutTheKey(t *testing.T) {
	t.Parallel()
	h, s := newLeakHouse(t), newScanner(t)
	s.down.Store(true)
	handler := NewScannerHandler(h.svc, &ScannerOptions{Keys: NewGitHubKeys(&GitHubKeysOptions{URL: s.URL})})
	body := report(h.apikey)
	w := post(handler, s.sign(body), body)
	assert.Equal(t, http.StatusServiceUnavailable, w.Code)
	assert.True(t, h.alive(t, h.apikey))
}

func TestPresentingATokenRevokesIt(t *testing.T) {
	t.Parallel()
	ways := map[string]func(token string) *http.Request{
		"bearer": func(x string) *http.Request {
			r := httptest.NewRequest(http.MethodPost, "/revoke-me", nil)
			r.Header.Set("Authorization", "Bearer "+x)
			return r
		},
		"form": func(x string) *http.Request {
			r := httptest.NewRequest(http.MethodPost, "/revoke-me", strings.NewReader(url.Values{"token": {x}}.Encode()))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			return r
		},
		"json": func(x string) *http.Request {
			r := httptest.NewRequest(http.MethodPost, "/revoke-me", strings.NewReader(`{"note":"found it","token":"`+x+`"}`))
			r.Header.Set("Content-Type", "application/json; charset=utf-8")
			return r
		},
		"text": func(x string) *http.Request {
			r := httptest.NewRequest(http.MethodPost, "/revoke-me", strings.NewReader(x+"\n"))
			r.Header.Set("Content-Type", "text/plain")
			return r
		},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newLeakHouse(t)
			handler := NewPresentHandler(h.svc, &PresentOptions{Notify: h.notify})
			answers := map[string]bool{}
			ask := func(token string) {
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, way(token))
				var b bytes.Buffer
				require.NoError(t, w.Header().Write(&b))
				answers[fmt.Sprint(w.Code, b.String(), w.Body.String())] = true
				require.Equal(t, http.StatusOK, w.Code)
			}
			ask("at_unknown")
			assert.True(t, h.alive(t, h.apikey))
			ask(h.apikey)
			assert.False(t, h.alive(t, h.apikey), "whoever holds it may end it")
			ask(h.refresh)
			assert.False(t, h.alive(t, h.access), "a refresh token ends its grant")
			ask(h.access)
			ask(h.apikey)
			assert.Len(t, answers, 1, "known, unknown and revoked tokens are answered alike: %v", answers)
			assert.Equal(t, 2, h.leaked(t), "each is recorded once")
			require.Len(t, h.told(), 2)
			assert.Equal(t, "holder", h.told()[0].By)
		})
	}
}

func TestPresentRefusesWhatIsNotOneToken(t *testing.T) {
	t.Parallel()
	h := newLeakHouse(t)
	handler := NewPresentHandler(h.svc, nil)
	form, asJSON, text := "application/x-www-form-urlencoded", "application/json", "text/plain"
	for name, x := range map[string]struct {
		auth       []string
		kind, body string
		status     int
	}{
		"nothing":             {nil, "", "", http.StatusBadRequest},
		"empty bearer":        {[]string{"Bearer "}, "", "", http.StatusBadRequest},
		"basic":               {[]string{"Basic " + h.apikey}, "", "", http.StatusBadRequest},
		"two headers":         {[]string{"Bearer " + h.apikey, "Bearer " + h.apikey}, "", "", http.StatusBadRequest},
		"header and body":     {[]string{"Bearer " + h.apikey}, text, h.apikey, http.StatusBadRequest},
		"two fields":          {nil, form, "token=" + h.apikey + "&token=" + h.apikey, http.StatusBadRequest},
		"no such field":       {nil, form, "Token=" + h.apikey, http.StatusBadRequest},
		"two members":         {nil, asJSON, `{"token":"` + h.apikey + `","token":"b"}`, http.StatusBadRequest},
		"a case variant":      {nil, asJSON, `{"Token":"` + h.apikey + `"}`, http.StatusBadRequest},
		"no string":           {nil, asJSON, `{"token":["` + h.apikey + `"]}`, http.StatusBadRequest},
		"cut JSON":            {nil, asJSON, `{"token":"` + h.apikey + `"`, http.StatusBadRequest},
		"something behind":    {nil, asJSON, `{"token":"` + h.apikey + `"}x`, http.StatusBadRequest},
		"two words":           {nil, text, h.apikey + " " + h.apikey, http.StatusBadRequest},
		"unknown kind":        {nil, "image/png", h.apikey, http.StatusBadRequest},
		"no kind":             {nil, "", h.apikey, http.StatusBadRequest},
		"a body without end":  {nil, text, strings.Repeat("x", 200<<10), http.StatusRequestEntityTooLarge},
		"longer than a token": {nil, text, strings.Repeat("x", 70<<10), http.StatusBadRequest},
	} {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(x.body))
		r.Header["Authorization"] = x.auth
		if x.auth == nil {
			r.Header.Del("Authorization")
		}
		if x.kind != "" {
			r.Header.Set("Content-Type", x.kind)
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		assert.Equal(t, x.status, w.Code, "%s: %s", name, w.Body)
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/?token="+url.QueryEscape(h.apikey), nil))
	assert.Equal(t, http.StatusMethodNotAllowed, w.Code, "a link that is followed revokes nothing")
	assert.True(t, h.alive(t, h.apikey))
}

func TestPresentAnswers503WhenTheStoreFails(t *testing.T) {
	t.Parallel()
	h := newLeakHouse(t)
	handler := NewPresentHandler(h.svc, nil)
	h.st.broken.Store(true)
	for _, x := range []string{h.access, h.refresh, h.apikey} {
		w := post(handler, http.Header{"Authorization": {"Bearer " + x}}, "")
		assert.Equal(t, http.StatusServiceUnavailable, w.Code)
		assert.NotEmpty(t, w.Header().Get("Retry-After"))
	}
	h.st.broken.Store(false)
	w := post(handler, http.Header{"Authorization": {"Bearer " + h.access}}, "")
	assert.Equal(t, http.StatusOK, w.Code)
	assert.False(t, h.alive(t, h.access))
}

func TestAHostsPanicDoesNotKeepTheNextTokenAlive(t *testing.T) {
	t.Parallel()
	h, s := newLeakHouse(t), newScanner(t)
	handler := NewScannerHandler(h.svc, &ScannerOptions{Keys: NewGitHubKeys(&GitHubKeysOptions{URL: s.URL}),
		Notify: func(context.Context, Leak) { panic("host's bug") }})
	body := report(h.access, h.apikey)
	require.Equal(t, http.StatusOK, post(handler, s.sign(body), body).Code)
	assert.False(t, h.alive(t, h.access))
	assert.False(t, h.alive(t, h.apikey))
}
