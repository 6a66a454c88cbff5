// Package bench measures this module beside its peers, in one run, each doing the same checks in its best recommended
// use. What counts is the ratio: see cmd/table.
package bench

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	asn "encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	jwtmiddleware "github.com/auth0/go-jwt-middleware/v2"
	auth0 "github.com/auth0/go-jwt-middleware/v2/validator"
	"github.com/coreos/go-oidc/v3/oidc"
	cristal "github.com/cristalhq/jwt/v5"
	"github.com/go-chi/jwtauth/v5"
	"github.com/go-jose/go-jose/v4"
	josejwt "github.com/go-jose/go-jose/v4/jwt"
	golangjwt "github.com/golang-jwt/jwt/v5"
	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jwt"
	fositejwt "github.com/ory/fosite/token/jwt"
	zitadel "github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/store/memstore"
)

const (
	issuer   = "https://auth.example.com"
	audience = "https://api.example.com"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newService(tb testing.TB, alg string, change func(*apitoken.Config)) *apitoken.Service {
	tb.Helper()
	c := apitoken.Config{Issuer: issuer, Audience: audience, Store: memstore.New(), InsecureKeysInStore: true, Algorithm: alg}
	if change != nil {
		change(&c)
	}
	svc, err := apitoken.New(c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { svc.Close() })
	return svc
}

func mint(tb testing.TB, svc *apitoken.Service) string {
	tb.Helper()
	i, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read", "orders:write"}})
	if err != nil {
		tb.Fatal(err)
	}
	return i.Access.Reveal()
}

// subject is a key, a token under it, and the key set that others read.
type subject struct {
	alg    string
	svc    *apitoken.Service // with a cache
	cold   *apitoken.Service // with a cache too small for what it is asked
	token  string
	fresh  []string         // more tokens than cold's cache holds: each first sight is of the next one
	theirs []string         // the same for the others
	public crypto.PublicKey // []byte for HS256
	kid    string
	set    []byte
}

// newSubject makes a token of ours whose key the peers know too. HS256 keys never leave a service: peers get a token of
// their own under a secret of their own.
func newSubject(tb testing.TB, alg string) *subject {
	tb.Helper()
	st := memstore.New()
	s := &subject{alg: alg}
	s.svc = newService(tb, alg, func(c *apitoken.Config) { c.Store = st })
	s.cold = newService(tb, alg, func(c *apitoken.Config) { c.Store, c.Validation.Cache = st, apitoken.NewCache(16<<10) })
	s.token = mint(tb, s.svc)
	for range 64 {
		s.fresh = append(s.fresh, mint(tb, s.svc))
	}
	s.set = must(s.svc.SigningKeys.JWKS(context.Background(), ""))
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(s.set, &set); err != nil {
		tb.Fatal(err)
	}
	if alg == "HS256" {
		secret := make([]byte, 32)
		rand.Read(secret)
		s.public = secret
	} else {
		s.public, s.kid = set.Keys[0].Key, set.Keys[0].KeyID
	}
	s.theirs = s.foreign()
	return s
}

// foreign are the tokens that the others check: ours, except for HS256. All sides look at as many different ones in turn: the
// same signature again and again is one that the processor has learned.
func (s *subject) foreign() []string {
	secret, ok := s.public.([]byte)
	if !ok {
		return s.fresh
	}
	var list []string
	for _, token := range s.fresh {
		parts := strings.Split(token, ".")
		m := hmac.New(sha256.New, secret)
		m.Write([]byte(parts[0] + "." + parts[1]))
		list = append(list, parts[0]+"."+parts[1]+"."+base64.RawURLEncoding.EncodeToString(m.Sum(nil)))
	}
	return list
}

// inTurn gives one of list after the other, over and over.
func inTurn[T any](list []T) func() T {
	i := 0
	return func() T {
		i++
		return list[i%len(list)]
	}
}

// raw is the bare signature check.
func (s *subject) raw() func() error {
	type signed struct{ input, sig []byte }
	var list []signed
	for _, token := range s.theirs {
		i := strings.LastIndexByte(token, '.')
		x := signed{[]byte(token[:i]), must(base64.RawURLEncoding.DecodeString(token[i+1:]))}
		if s.alg == "ES256" {
			x.sig = asn1(x.sig)
		}
		list = append(list, x)
	}
	next := inTurn(list)
	bad := errors.New("signature")
	switch key := s.public.(type) {
	case *ecdsa.PublicKey:
		return func() error {
			x := next()
			h := sha256.Sum256(x.input)
			if !ecdsa.VerifyASN1(key, h[:], x.sig) {
				return bad
			}
			return nil
		}
	case ed25519.PublicKey:
		return func() error {
			x := next()
			if !ed25519.Verify(key, x.input, x.sig) {
				return bad
			}
			return nil
		}
	case *rsa.PublicKey:
		return func() error {
			x := next()
			h := sha256.Sum256(x.input)
			return rsa.VerifyPKCS1v15(key, crypto.SHA256, h[:], x.sig)
		}
	case []byte:
		return func() error {
			x := next()
			m := hmac.New(sha256.New, key)
			m.Write(x.input)
			if !hmac.Equal(m.Sum(nil), x.sig) {
				return bad
			}
			return nil
		}
	}
	panic("no key")
}

func asn1(sig []byte) []byte {
	type pair struct{ R, S *big.Int }
	return must(asn.Marshal(pair{new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])}))
}

// staticKeys is a key set that coreos' verifier reads without HTTP.
type staticKeys struct{ oidc.StaticKeySet }

// zitadelKeys is the same for zitadel's.
type zitadelKeys struct {
	key crypto.PublicKey
	alg string
}

func (k zitadelKeys) VerifySignature(_ context.Context, sig *jose.JSONWebSignature) ([]byte, error) {
	return sig.Verify(k.key)
}

type scopeClaims struct {
	golangjwt.RegisteredClaims
	Scope    string `json:"scope"`
	ClientID string `json:"client_id"`
}

type roleClaims struct {
	scopeClaims
	Roles []string `json:"roles"`
}

// peers are the validators beside ours. Each checks signature, algorithm, issuer, audience and times, and reads the scope.
func (s *subject) peers() map[string]func() error {
	token := inTurn(s.theirs)
	key := s.public
	out := map[string]func() error{"raw": s.raw()}

	parser := golangjwt.NewParser(golangjwt.WithValidMethods([]string{s.alg}), golangjwt.WithIssuer(issuer), golangjwt.WithAudience(audience), golangjwt.WithExpirationRequired(), golangjwt.WithIssuedAt())
	out["golang-jwt"] = func() error {
		var c scopeClaims
		_, err := parser.ParseWithClaims(token(), &c, func(*golangjwt.Token) (any, error) { return key, nil })
		return err
	}

	algX, _ := jwa.LookupSignatureAlgorithm(s.alg)
	keyX := must(jwk.Import(key))
	out["jwx"] = func() error {
		t, err := jwt.Parse([]byte(token()), jwt.WithKey(algX, keyX), jwt.WithValidate(true), jwt.WithIssuer(issuer), jwt.WithAudience(audience))
		if err != nil {
			return err
		}
		var scope string
		return t.Get("scope", &scope)
	}

	algs := []jose.SignatureAlgorithm{jose.SignatureAlgorithm(s.alg)}
	out["go-jose"] = func() error {
		t, err := josejwt.ParseSigned(token(), algs)
		if err != nil {
			return err
		}
		var c struct {
			josejwt.Claims
			Scope string `json:"scope"`
		}
		if err := t.Claims(key, &c); err != nil {
			return err
		}
		return c.Validate(josejwt.Expected{Issuer: issuer, AnyAudience: josejwt.Audience{audience}})
	}

	ctx := context.Background()
	if s.alg != "HS256" {
		v := oidc.NewVerifier(issuer, &staticKeys{oidc.StaticKeySet{PublicKeys: []crypto.PublicKey{key}}}, &oidc.Config{ClientID: audience, SupportedSigningAlgs: []string{s.alg}})
		out["go-oidc"] = func() error {
			t, err := v.Verify(ctx, token())
			if err != nil {
				return err
			}
			var c struct {
				Scope string `json:"scope"`
			}
			return t.Claims(&c)
		}
		z := op.NewAccessTokenVerifier(issuer, zitadelKeys{key, s.alg}, op.WithSupportedAccessTokenSigningAlgorithms(s.alg))
		out["zitadel"] = func() error {
			_, err := op.VerifyAccessToken[*zitadel.AccessTokenClaims](ctx, token(), z)
			return err
		}
	}

	if v := cristalVerifier(s.alg, key); v != nil {
		out["cristalhq"] = func() error {
			t, err := cristal.Parse([]byte(token()), v)
			if err != nil {
				return err
			}
			var c struct {
				cristal.RegisteredClaims
				Scope string `json:"scope"`
			}
			if err := json.Unmarshal(t.Claims(), &c); err != nil {
				return err
			}
			if !c.IsForAudience(audience) || !c.IsIssuer(issuer) || !c.IsValidAt(time.Now()) {
				return errors.New("claims")
			}
			return nil
		}
	}

	if s.alg == "EdDSA" || s.alg == "HS256" {
		return s.withAuth0(out, token, key) // fosite takes neither
	}
	out["fosite"] = func() error {
		// fosite's parser takes the key by callback and checks times; issuer and audience are its caller's.
		t, err := fositejwt.ParseWithClaims(token(), fositejwt.MapClaims{}, func(*fositejwt.Token) (any, error) { return key, nil })
		if err != nil {
			return err
		}
		if !t.Claims.VerifyIssuer(issuer, true) || !t.Claims.VerifyAudience(audience, true) {
			return errors.New("claims")
		}
		return nil
	}

	return s.withAuth0(out, token, key)
}

func (s *subject) withAuth0(out map[string]func() error, token func() string, key crypto.PublicKey) map[string]func() error {
	a := must(auth0.New(func(context.Context) (any, error) { return key, nil }, auth0.SignatureAlgorithm(s.alg), issuer, []string{audience}))
	out["auth0"] = func() error {
		_, err := a.ValidateToken(context.Background(), token())
		return err
	}
	return out
}

func cristalVerifier(alg string, key crypto.PublicKey) cristal.Verifier {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		return must(cristal.NewVerifierES(cristal.ES256, k))
	case ed25519.PublicKey:
		return must(cristal.NewVerifierEdDSA(k))
	case *rsa.PublicKey:
		if alg == "PS256" {
			return must(cristal.NewVerifierPS(cristal.PS256, k))
		}
		return must(cristal.NewVerifierRS(cristal.RS256, k))
	case []byte:
		return must(cristal.NewVerifierHS(cristal.HS256, k))
	}
	return nil
}

// validating is the validation of a token of alg. A first sight is one that the cache does not know and then keeps: each of
// 64 tokens in turn, where eight find room.
func validating(tb testing.TB, alg string) group {
	ctx := context.Background()
	s := newSubject(tb, alg)
	c := apitoken.Bearer(s.token)
	fresh := inTurn(s.fresh)
	g := group{name: "Validate/" + alg, rows: []row{
		{name: "apitoken/first", f: once(func() error {
			_, err := s.cold.Validate(ctx, apitoken.Bearer(fresh()))
			return err
		})},
		{name: "apitoken/repeat", f: once(func() error { _, err := s.svc.Validate(ctx, c); return err })},
	}}
	peers := s.peers()
	for _, name := range slices.Sorted(maps.Keys(peers)) {
		g.rows = append(g.rows, row{name: name + "/first", f: once(peers[name])})
	}
	return g
}

func BenchmarkValidate(b *testing.B) {
	for _, alg := range []string{"ES256", "EdDSA", "RS256", "HS256"} {
		b.Run(alg, validating(b, alg).bench)
	}
	b.Run("clock/raw", func(b *testing.B) { // what no validator that judges expiry can do without
		for b.Loop() {
			_ = time.Now()
		}
	})
}

// middleware is a known token on its way through net/http middleware. raw is the bare handler; raw-and-context is one behind
// the least that puts something into a request's context, which net/http copies the request for.
func middleware(tb testing.TB) group {
	s := newSubject(tb, "ES256")
	bare := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	key := s.public
	keyX := must(jwk.Import(key))
	ja := jwtauth.New("ES256", nil, must(key.(*ecdsa.PublicKey), nil))
	a0 := must(auth0.New(func(context.Context) (any, error) { return key, nil }, auth0.ES256, issuer, []string{audience}))
	g := group{name: "Middleware"}
	for _, x := range []struct {
		name string
		h    http.Handler
	}{
		{"raw", bare},
		{"raw-and-context", withCaller(bare, s)},
		{"apitoken", httpauth.New(s.svc, nil).Require("orders:read")(bare)},
		{"jwtauth", jwtauth.Verifier(ja)(jwtauth.Authenticator(ja)(bare))},
		{"auth0", jwtmiddleware.New(a0.ValidateToken).CheckJWT(bare)},
		{"jwx", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := jwt.ParseRequest(r, jwt.WithKey(jwa.ES256(), keyX), jwt.WithIssuer(issuer), jwt.WithAudience(audience)); err != nil {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			bare(w, r)
		})},
	} {
		r := &http.Request{Method: "GET", URL: must(url.Parse("/orders")), Header: http.Header{"Authorization": {"Bearer " + s.token}}, RemoteAddr: "192.0.2.1:1234"}
		probe := httptest.NewRecorder()
		x.h.ServeHTTP(probe, r)
		if probe.Code != http.StatusOK {
			tb.Fatalf("%s: status %d: %s", x.name, probe.Code, probe.Body)
		}
		w := &nullWriter{h: http.Header{}}
		g.rows = append(g.rows, row{name: x.name, f: once(func() error { x.h.ServeHTTP(w, r); return nil })})
	}
	return g
}

type caller struct{}

//go:noinline // the compiler must not know which handler it is: a router does not
func withCaller(next http.Handler, who any) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), caller{}, who)))
	})
}

func BenchmarkMiddleware(b *testing.B) { middleware(b).bench(b) }

type nullWriter struct{ h http.Header }

func (w *nullWriter) Header() http.Header         { return w.h }
func (w *nullWriter) Write(b []byte) (int, error) { return len(b), nil }
func (w *nullWriter) WriteHeader(int)             {}
