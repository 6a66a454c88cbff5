// Package adaptertest says when an adapter decides as httpauth does: one table of requests, sent to the adapter and to httpauth,
// must get the same verdicts. The adapters of this project run it, and one of your own can.
//
//	func TestVerdicts(t *testing.T) {
//		adaptertest.Run(t, func(t *testing.T, v apitoken.Validator) adaptertest.Adapter {
//			guard := myadapter.New(v, adaptertest.Scope)
//			return adaptertest.Adapter{Method: "POST", URL: "https://api.test/orders", Send: …}
//		})
//	}
package adaptertest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// Scope is what the guarded operation must require.
const Scope apitoken.Scope = "orders:read"

// Adapter is an adapter in front of one operation that requires Scope.
type Adapter struct {
	// Method and URL are what a DPoP proof names (htm and htu of RFC 9449 §4.2). Both empty: the adapter takes no proofs, and the
	// requests with one are left out.
	Method, URL string
	// Send sends a request with these headers, or with what the adapter's protocol has for them: Authorization and DPoP. The
	// names are canonical (Dpop), a header may have several values.
	Send func(t *testing.T, h http.Header) Verdict
}

// Verdict is how an adapter answered.
type Verdict struct {
	Status  int    // of HTTP: 200, 400, 401, 403, 429 or 503, or what the adapter's protocol has for it
	Error   string // the error code of RFC 6750 §3.1 or RFC 9449 §7.1, such as invalid_token; empty: none, as for a missing token
	Subject string // whom the operation saw in its context; empty: the operation did not run
}

// Run runs the table. open makes the adapter that asks v; it is called twice, because the requests of a service that cannot
// reach its store need a service of their own.
func Run(t *testing.T, open func(t *testing.T, v apitoken.Validator) Adapter) {
	t.Run("a service at work", func(t *testing.T) {
		w := begin(t)
		w.check(t, open(t, w.svc), requests)
	})
	t.Run("a service that cannot reach its store", func(t *testing.T) {
		w := cutOff(t)
		w.check(t, open(t, w.svc), unavailable)
	})
}

// request is a row of the table.
type request struct {
	name  string
	want  Verdict
	proof bool // it needs an adapter that takes DPoP proofs
	// headers makes the request anew for each side: proofs and API keys are used up. at says where it is sent.
	headers func(w *world, at target) http.Header
}

type target struct{ method, url string }

var (
	passes  = Verdict{Status: http.StatusOK, Subject: "alice"}
	invalid = Verdict{Status: http.StatusUnauthorized, Error: "invalid_token"}
	bad     = Verdict{Status: http.StatusBadRequest, Error: "invalid_request"}
	noProof = Verdict{Status: http.StatusUnauthorized, Error: "invalid_dpop_proof"}
)

func bearer(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

func authorization(values ...string) func(*world, target) http.Header {
	return func(*world, target) http.Header { return http.Header{"Authorization": values} }
}

func of(token func(*world) string) func(*world, target) http.Header {
	return func(w *world, _ target) http.Header { return bearer(token(w)) }
}

var requests = []request{
	{name: "a valid token", want: passes, headers: of(func(w *world) string { return w.valid })},
	{name: "a scheme in another case", want: passes, headers: func(w *world, _ target) http.Header {
		return http.Header{"Authorization": {"bEARER " + w.valid}}
	}},
	{name: "a scope that covers the one needed", want: passes, headers: of(func(w *world) string { return w.broader })},
	{name: "nothing", want: Verdict{Status: 401}, headers: authorization()},
	{name: "another scheme", want: Verdict{Status: 401}, headers: authorization("Negotiate abc")},
	{name: "a scheme without a token", want: bad, headers: authorization("Bearer")},
	{name: "two tokens in one value", want: bad, headers: authorization("Bearer a b")},
	{name: "a list of tokens", want: bad, headers: authorization("Bearer a, Bearer b")},
	{name: "no token68", want: bad, headers: authorization("Bearer {}")},
	{name: "two tokens", want: bad, headers: func(w *world, _ target) http.Header {
		return http.Header{"Authorization": {"Bearer " + w.valid, "Bearer " + w.valid}}
	}},
	{name: "junk", want: invalid, headers: authorization("Bearer junk")},
	{name: "a token with a changed signature", want: invalid, headers: of(func(w *world) string { return w.forged })},
	{name: "an expired token", want: invalid, headers: of(func(w *world) string { return w.expired })},
	{name: "a revoked token", want: invalid, headers: of(func(w *world) string { return w.revoked })},
	{name: "a token for another audience", want: invalid, headers: of(func(w *world) string { return w.foreign })},
	{name: "a refresh token", want: invalid, headers: of(func(w *world) string { return w.refresh })},
	{name: "a token without the scope", want: Verdict{Status: 403, Error: "insufficient_scope"}, headers: of(func(w *world) string { return w.lacking })},
	{name: "an API key", want: passes, headers: of(func(w *world) string { return w.key })},
	{name: "an API key without the scope", want: Verdict{Status: 403, Error: "insufficient_scope"}, headers: of(func(w *world) string { return w.lackingKey })},
	{name: "a revoked API key", want: invalid, headers: of(func(w *world) string { return w.revokedKey })},
	{name: "an API key over its rate", want: Verdict{Status: 429, Error: "rate_limited"}, headers: of(func(w *world) string { return w.tired })},

	{name: "a token bound to a key, without a proof", want: invalid, headers: of(func(w *world) string { return w.bound })},
	{name: "a token bound to a certificate, without one", want: invalid, headers: of(func(w *world) string { return w.certified })},
	{name: "a proof", proof: true, want: passes, headers: func(w *world, at target) http.Header {
		return proved(w.bound, w.prove(at, w.bound))
	}},
	{name: "a proof that was seen before", proof: true, want: noProof, headers: func(w *world, at target) http.Header {
		p := w.prove(at, w.bound)
		_, err := w.svc.Validate(context.Background(), apitoken.Credential{Token: w.bound, DPoP: p, Method: at.method, URL: at.url})
		if err != nil {
			w.t.Errorf("the first use of a proof: %v", err)
		}
		return proved(w.bound, p)
	}},
	{name: "the DPoP scheme without a proof", proof: true, want: noProof, headers: func(w *world, _ target) http.Header {
		return http.Header{"Authorization": {"DPoP " + w.bound}}
	}},
	{name: "two proofs", proof: true, want: noProof, headers: func(w *world, at target) http.Header {
		return http.Header{"Authorization": {"DPoP " + w.bound}, "Dpop": {w.prove(at, w.bound), w.prove(at, w.bound)}}
	}},
	{name: "a proof for another method", proof: true, want: noProof, headers: func(w *world, at target) http.Header {
		at.method = "DELETE"
		return proved(w.bound, w.prove(at, w.bound))
	}},
	{name: "a proof for another operation", proof: true, want: noProof, headers: func(w *world, at target) http.Header {
		at.url += "x"
		return proved(w.bound, w.prove(at, w.bound))
	}},
	{name: "a proof beside another token", proof: true, want: noProof, headers: func(w *world, at target) http.Header {
		return proved(w.bound, w.prove(at, w.valid))
	}},
	{name: "a proof beside a token that is not bound", proof: true, want: invalid, headers: func(w *world, at target) http.Header {
		return proved(w.valid, w.prove(at, w.valid))
	}},
	{name: "a proof beside the Bearer scheme", proof: true, want: invalid, headers: func(w *world, at target) http.Header {
		return http.Header{"Authorization": {"Bearer " + w.bound}, "Dpop": {w.prove(at, w.bound)}}
	}},
}

var unavailable = []request{
	{name: "a valid token", want: Verdict{Status: 503, Error: "temporarily_unavailable"}, headers: of(func(w *world) string { return w.valid })},
	{name: "an API key", want: Verdict{Status: 503, Error: "temporarily_unavailable"}, headers: of(func(w *world) string { return w.key })},
	{name: "junk", want: invalid, headers: authorization("Bearer junk")},
	{name: "nothing", want: Verdict{Status: 401}, headers: authorization()},
}

func proved(token, proof string) http.Header {
	return http.Header{"Authorization": {"DPoP " + token}, "Dpop": {proof}}
}

// world is a service and what its clients hold.
type world struct {
	t    *testing.T
	svc  *apitoken.Service
	now  func() time.Time
	sign *ecdsa.PrivateKey
	jwk  jose.JSONWebKey

	valid, broader, forged, expired, revoked, foreign, refresh, lacking string
	key, lackingKey, revokedKey, tired                                  string
	bound, certified                                                    string
}

const other = "https://other.test"

func begin(t *testing.T) *world {
	svc := apitokentest.New(t, func(c *apitoken.Config) { c.Audiences = []string{other} })
	w := &world{t: t, svc: svc.Service, now: svc.Now}
	var err error
	w.sign, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	w.jwk = jose.JSONWebKey{Key: w.sign.Public()}
	sum, err := w.jwk.Thumbprint(crypto.SHA256)
	w.must(err)

	scopes := apitoken.Scopes{Scope}
	w.expired = w.issue(apitoken.Request{Subject: "alice", Scopes: scopes, Lifetime: time.Minute}).Access.Reveal()
	svc.Advance(time.Minute)
	w.valid = w.issue(apitoken.Request{Subject: "alice", Scopes: scopes}).Access.Reveal()
	w.broader = w.issue(apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders"}}).Access.Reveal()
	w.forged = changed(w.valid)
	gone := w.issue(apitoken.Request{Subject: "alice", Scopes: scopes, Refresh: true})
	w.revoked = gone.Access.Reveal()
	w.must(svc.Revoke(context.Background(), apitoken.ByGrant(gone.Token.Grant()), "logged out"))
	w.foreign = w.issue(apitoken.Request{Subject: "alice", Scopes: scopes, Audiences: []string{other}}).Access.Reveal()
	w.refresh = w.issue(apitoken.Request{Subject: "alice", Scopes: scopes, Refresh: true}).Refresh.Reveal()
	w.lacking = w.issue(apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:write"}}).Access.Reveal()
	thumbprint := base64.RawURLEncoding.EncodeToString(sum)
	w.bound = w.issue(apitoken.Request{Subject: "alice", Scopes: scopes, Binding: apitoken.BindDPoP(thumbprint)}).Access.Reveal()
	w.certified = w.issue(apitoken.Request{Subject: "alice", Scopes: scopes, Binding: apitoken.BindCertificate([32]byte{1})}).Access.Reveal()

	_, w.key = w.apiKey(apitoken.APIKeyRequest{Subject: "alice", Scopes: scopes})
	_, w.lackingKey = w.apiKey(apitoken.APIKeyRequest{Subject: "alice", Scopes: apitoken.Scopes{"orders:write"}})
	old, text := w.apiKey(apitoken.APIKeyRequest{Subject: "alice", Scopes: scopes})
	w.revokedKey = text
	w.must(svc.Revoke(context.Background(), apitoken.ByToken(old.ID), "lost"))
	_, w.tired = w.apiKey(apitoken.APIKeyRequest{Subject: "alice", Scopes: scopes, Rate: apitoken.Rate{Burst: 1, Per: time.Hour}})
	_, err = apitoken.Authorize(context.Background(), svc, apitoken.Bearer(w.tired), apitoken.AllOf(Scope))
	w.must(err)
	return w
}

// cutOff is a service whose store has failed for longer than its view may be old.
func cutOff(t *testing.T) *world {
	st := &failing{Store: memstore.New()}
	svc, err := apitoken.New(apitoken.Config{Issuer: apitokentest.Issuer, Audience: apitokentest.Audience, Store: st, InsecureKeysInStore: true,
		Validation: apitoken.Validation{MaxStaleness: 50 * time.Millisecond}})
	w := &world{t: t, svc: svc, now: time.Now}
	w.must(err)
	t.Cleanup(func() {
		st.down.Store(false)
		w.must(svc.Close())
	})
	w.valid = w.issue(apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{Scope}}).Access.Reveal()
	_, w.key = w.apiKey(apitoken.APIKeyRequest{Subject: "alice", Scopes: apitoken.Scopes{Scope}})
	st.down.Store(true)
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		_, err := svc.Validate(context.Background(), apitoken.Bearer(w.valid))
		if errors.Is(err, apitoken.ErrUnavailable) {
			return w
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("a service without a store still answers %v", err)
		}
	}
}

// failing is a store that can be cut off.
type failing struct {
	store.Store
	down atomic.Bool
}

var errDown = errors.New("the store is down")

func (s *failing) Get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	if s.down.Load() {
		return store.Record{}, errDown
	}
	return s.Store.Get(ctx, kind, id)
}

func (s *failing) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	if s.down.Load() {
		return store.Commit{}, errDown
	}
	return s.Store.Apply(ctx, c)
}

func (s *failing) Follow(ctx context.Context, after store.Position, kinds []store.Kind, most int) (store.View, error) {
	if s.down.Load() {
		return store.View{}, errDown
	}
	return s.Store.Follow(ctx, after, kinds, most)
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) issue(r apitoken.Request) *apitoken.Issued {
	w.t.Helper()
	i, err := w.svc.Issue(context.Background(), r)
	w.must(err)
	return i
}

func (w *world) apiKey(r apitoken.APIKeyRequest) (apitoken.APIKey, string) {
	w.t.Helper()
	key, secret, err := w.svc.APIKeys.Create(context.Background(), r)
	w.must(err)
	return key, secret.Reveal()
}

// changed is a token with another first character of its signature.
func changed(token string) string {
	b := []byte(token)
	for i := len(b) - 1; ; i-- {
		if b[i] != '.' {
			continue
		}
		if b[i+1]++; b[i+1] > 'z' || b[i+1] < 'a' {
			b[i+1] = 'b'
		}
		return string(b)
	}
}

// prove makes a proof for one request (RFC 9449 §4.2).
func (w *world) prove(at target, token string) string {
	w.t.Helper()
	ath := sha256.Sum256([]byte(token))
	j := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{
		"jti": rand.Text(), "htm": at.method, "htu": at.url, "iat": w.now().Unix(), "ath": base64.RawURLEncoding.EncodeToString(ath[:]),
	})
	j.Header["typ"], j.Header["jwk"] = "dpop+jwt", w.jwk
	s, err := j.SignedString(w.sign)
	w.must(err)
	return s
}

// check sends every request of the table to the adapter and to httpauth.
func (w *world) check(t *testing.T, a Adapter, table []request) {
	at := target{a.Method, a.URL}
	proofs := at != target{}
	if !proofs {
		at = target{"POST", apitokentest.Audience + "/orders"}
	}
	reference := w.reference(at)
	for _, r := range table {
		if r.proof && !proofs {
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			w.t = t
			if got := reference(r.headers(w, at)); got != r.want {
				t.Fatalf("httpauth answers %+v, the table says %+v", got, r.want)
			}
			if got := a.Send(t, maps.Clone(r.headers(w, at))); got != r.want {
				t.Errorf("the adapter answers %+v, httpauth %+v", got, r.want)
			}
		})
	}
}

// reference is httpauth in front of the same operation.
func (w *world) reference(at target) func(http.Header) Verdict {
	u, err := url.Parse(at.url)
	w.must(err)
	subject := ""
	h := httpauth.New(w.svc, &httpauth.Options{BaseURL: u.Scheme + "://" + u.Host}).Require(Scope)(
		http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { subject = apitoken.FromContext(r.Context()).Subject() }))
	return func(header http.Header) Verdict {
		subject = ""
		r := httptest.NewRequest(at.method, u.Path, nil)
		r.Header = header
		answer := httptest.NewRecorder()
		h.ServeHTTP(answer, r)
		return HTTPVerdict(answer.Result(), subject)
	}
}

// HTTPVerdict is the verdict of an HTTP response whose refusals have the body of httpauth's (RFC 9457). It reads and closes the
// body. subject is whom the operation saw.
func HTTPVerdict(r *http.Response, subject string) Verdict {
	defer r.Body.Close()
	v := Verdict{Status: r.StatusCode, Subject: subject}
	if r.StatusCode >= 400 {
		var problem struct{ Error string }
		if err := json.NewDecoder(r.Body).Decode(&problem); err != nil {
			problem.Error = "the body is no problem: " + err.Error()
		}
		v.Error = problem.Error
	}
	return v
}
