package apitoken_test

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
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	gojwt "github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// prover is a DPoP client (RFC 9449 §4), made with libraries that are not ours.
type prover struct {
	key    crypto.Signer
	method gojwt.SigningMethod
	jwk    map[string]any
	print  string
}

func newProver(t testing.TB, alg string) *prover {
	t.Helper()
	p := &prover{method: gojwt.GetSigningMethod(alg)}
	var err error
	switch alg {
	case "ES256":
		p.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "EdDSA":
		_, p.key, err = ed25519.GenerateKey(rand.Reader)
	default:
		p.key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	require.NoError(t, err)
	j := jose.JSONWebKey{Key: p.key.Public()}
	sum, err := j.Thumbprint(crypto.SHA256)
	require.NoError(t, err)
	p.print = base64.RawURLEncoding.EncodeToString(sum)
	raw, err := j.MarshalJSON()
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(raw, &p.jwk))
	return p
}

var proofs atomic.Int64

// proof makes a proof for an access token ("" for none); change may spoil it.
func (p *prover) proof(t testing.TB, method, target, token string, now time.Time, change func(header, claims map[string]any)) string {
	t.Helper()
	claims := gojwt.MapClaims{"jti": fmt.Sprint("proof-", proofs.Add(1)), "htm": method, "htu": target, "iat": now.Unix()}
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		claims["ath"] = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	j := gojwt.NewWithClaims(p.method, claims)
	j.Header["typ"], j.Header["jwk"] = "dpop+jwt", maps.Clone(p.jwk)
	if change != nil {
		change(j.Header, claims)
	}
	s, err := j.SignedString(p.key)
	require.NoError(t, err)
	return s
}

const resource = "https://api.example.com/orders"

func boundTo(t testing.TB, svc *apitoken.Service, p *prover) string {
	t.Helper()
	return issue(t, svc, apitoken.Request{Subject: "alice", Binding: apitoken.BindDPoP(p.print)}).Access.Reveal()
}

func present(v apitoken.Validator, token, proof string) error {
	_, err := v.Validate(context.Background(), apitoken.Credential{Token: token, DPoP: proof, Method: "GET", URL: resource})
	return err
}

func TestProofsOfEveryAlgorithmAreTakenOnce(t *testing.T) {
	t.Parallel()
	svc := serviceOn(t, memstore.New(), nil)
	for _, alg := range []string{"ES256", "EdDSA", "RS256", "PS256"} {
		p := newProver(t, alg)
		token := boundTo(t, svc, p)
		proof := p.proof(t, "GET", resource, token, time.Now(), nil)
		require.NoError(t, present(svc, token, proof), alg)
		require.ErrorIs(t, present(svc, token, proof), apitoken.ErrInvalidProof, "a proof is good once")
		require.NoError(t, present(svc, token, p.proof(t, "GET", resource, token, time.Now(), nil)), "the next one is good")

		require.ErrorIs(t, present(svc, token, ""), apitoken.ErrInvalidToken, "a bound token is no bearer token")
		require.NotErrorIs(t, present(svc, token, ""), apitoken.ErrInvalidProof)
		other := newProver(t, "ES256")
		require.ErrorIs(t, present(svc, token, other.proof(t, "GET", resource, token, time.Now(), nil)), apitoken.ErrInvalidProof, "another key's proof")
		bare := issue(t, svc, apitoken.Request{Subject: "alice"}).Access.Reveal()
		require.ErrorIs(t, present(svc, bare, p.proof(t, "GET", resource, bare, time.Now(), nil)), apitoken.ErrInvalidToken, "an unbound token under the DPoP scheme")
	}
}

// Each line is one of RFC 9449 §4.3's checks.
func TestProofsThatProveNothing(t *testing.T) {
	t.Parallel()
	svc := serviceOn(t, memstore.New(), nil)
	p := newProver(t, "ES256")
	token := boundTo(t, svc, p)
	d, err := p.key.(*ecdsa.PrivateKey).Bytes()
	require.NoError(t, err)
	for name, change := range map[string]func(h, c map[string]any){
		"no jti":            func(_, c map[string]any) { delete(c, "jti") },
		"long jti":          func(_, c map[string]any) { c["jti"] = strings.Repeat("x", 256) },
		"no htm":            func(_, c map[string]any) { delete(c, "htm") },
		"no htu":            func(_, c map[string]any) { delete(c, "htu") },
		"no iat":            func(_, c map[string]any) { delete(c, "iat") },
		"no ath":            func(_, c map[string]any) { delete(c, "ath") },
		"ath of another":    func(_, c map[string]any) { c["ath"] = base64.RawURLEncoding.EncodeToString(make([]byte, 32)) },
		"htm in lower case": func(_, c map[string]any) { c["htm"] = "get" },
		"another method":    func(_, c map[string]any) { c["htm"] = "POST" },
		"another path":      func(_, c map[string]any) { c["htu"] = resource + "/" },
		"another host":      func(_, c map[string]any) { c["htu"] = "https://api.example.org/orders" },
		"another scheme":    func(_, c map[string]any) { c["htu"] = "http://api.example.com/orders" },
		"user in htu":       func(_, c map[string]any) { c["htu"] = "https://x@api.example.com/orders" },
		"old":               func(_, c map[string]any) { c["iat"] = time.Now().Add(-2 * time.Minute).Unix() },
		"of the future":     func(_, c map[string]any) { c["iat"] = time.Now().Add(time.Minute).Unix() },
		"iat as text":       func(_, c map[string]any) { c["iat"] = fmt.Sprint(time.Now().Unix()) },
		"typ of a JWT":      func(h, _ map[string]any) { h["typ"] = "JWT" },
		"typ of a token":    func(h, _ map[string]any) { h["typ"] = "at+jwt" },
		"no jwk":            func(h, _ map[string]any) { delete(h, "jwk") },
		"a private jwk": func(h, _ map[string]any) {
			h["jwk"].(map[string]any)["d"] = base64.RawURLEncoding.EncodeToString(d)
		},
		"alg of another kind": func(h, _ map[string]any) { h["alg"] = "RS256" },
		"alg none":            func(h, _ map[string]any) { h["alg"] = "none" },
		"alg HS256":           func(h, _ map[string]any) { h["alg"] = "HS256" },
		"jwk's own alg":       func(h, _ map[string]any) { h["jwk"].(map[string]any)["alg"] = "ES384" },
		"jku":                 func(h, _ map[string]any) { h["jku"] = "https://evil.example/jwks" },
		"crit":                func(h, _ map[string]any) { h["crit"] = []string{"exp"} },
		"nonce as number":     func(_, c map[string]any) { c["nonce"] = 7 },
		"htu, other case":     func(_, c map[string]any) { c["HTU"] = resource },
	} {
		proof := p.proof(t, "GET", resource, token, time.Now(), change)
		require.ErrorIs(t, present(svc, token, proof), apitoken.ErrInvalidProof, name)
	}
	good := p.proof(t, "GET", resource, token, time.Now(), nil)
	for i := range len(good) {
		if good[i] == '.' {
			continue
		}
		flipped := []byte(good)
		flipped[i] ^= 1
		require.Error(t, present(svc, token, string(flipped)), "byte %d", i)
	}
	require.NoError(t, present(svc, token, good), "what was refused is not used up")
	require.ErrorIs(t, present(svc, token, good+good), apitoken.ErrInvalidProof)
	require.ErrorIs(t, present(svc, token, strings.Repeat("a.", 1<<20)), apitoken.ErrInvalidProof)

	// What clients write differently is the same all the same (RFC 3986 §6.2).
	for _, target := range []string{"HTTPS://API.example.com/orders", "https://api.example.com:443/orders", "https://api.example.com/orders?x=1#y", "https://api.example.com/%6Frders"} {
		require.NoError(t, present(svc, token, p.proof(t, "GET", target, token, time.Now(), nil)), target)
	}
}

func TestOneOfManyUsesOfAProofWins(t *testing.T) {
	t.Parallel()
	st := memstore.New()
	svc, second := serviceOn(t, st, nil), serviceOn(t, st, nil)
	p := newProver(t, "ES256")
	token := boundTo(t, svc, p)
	const endpoint = "https://auth.example.com/token"
	for range 5 {
		atResource := p.proof(t, "GET", resource, token, time.Now(), nil)
		atIssuer := p.proof(t, "POST", endpoint, "", time.Now(), nil)
		var won, proved atomic.Int64
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				if present(svc, token, atResource) == nil {
					won.Add(1)
				}
				s := []*apitoken.Service{svc, second}[i%2] // in whichever process
				if binding, err := s.Adapter().Prove(context.Background(), apitoken.Proof{JWT: atIssuer, Method: "POST", URL: endpoint}); err == nil {
					require.Equal(t, apitoken.BindDPoP(p.print), binding)
					proved.Add(1)
				} else {
					require.ErrorIs(t, err, apitoken.ErrInvalidProof)
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, 1, won.Load())
		require.EqualValues(t, 1, proved.Load())
	}
}

func TestNonces(t *testing.T) {
	t.Parallel()
	k := &clock{}
	svc := serviceOn(t, memstore.NewWithClock(k.Now), func(c *apitoken.Config) {
		c.Now = k.Now
		c.Validation.RequireProofNonce = true
	})
	p := newProver(t, "ES256")
	token := boundTo(t, svc, p)
	nonceOf := func(err error) string {
		t.Helper()
		var e *apitoken.Error
		require.ErrorAs(t, err, &e)
		require.ErrorIs(t, e, apitoken.ErrUseNonce)
		require.NotEmpty(t, e.Nonce)
		return e.Nonce
	}
	with := func(nonce string) func(_, c map[string]any) {
		return func(_, c map[string]any) { c["nonce"] = nonce }
	}
	nonce := nonceOf(present(svc, token, p.proof(t, "GET", resource, token, k.Now(), nil)))
	proof := p.proof(t, "GET", resource, token, k.Now(), with(nonce))
	require.NoError(t, present(svc, token, proof))
	require.ErrorIs(t, present(svc, token, proof), apitoken.ErrInvalidProof)
	require.NoError(t, present(svc, token, p.proof(t, "GET", resource, token, k.Now(), with(nonce))), "a nonce serves many proofs")
	require.NoError(t, present(svc, token, p.proof(t, "GET", resource, token, k.Now().Add(-3*time.Minute), with(nonce))), "a client whose clock is wrong")
	nonceOf(present(svc, token, p.proof(t, "GET", resource, token, k.Now(), with("AAAA"))))
	nonceOf(present(svc, token, p.proof(t, "GET", resource, token, k.Now(), with(flip(nonce, len(nonce)-10)))))

	// At the endpoints of the service nonces are of the service, for all its processes.
	const endpoint = "https://auth.example.com/token"
	prove := func(change func(h, c map[string]any)) error {
		_, err := svc.Adapter().Prove(context.Background(), apitoken.Proof{JWT: p.proof(t, "POST", endpoint, "", k.Now(), change), Method: "POST", URL: endpoint, RequireNonce: true})
		return err
	}
	nonce = nonceOf(prove(nil))
	require.NoError(t, prove(with(nonce)))
	require.NoError(t, prove(with(svc.Adapter().ProofNonce())))
	k.Advance(6 * time.Minute)
	nonceOf(prove(with(nonce)))
	require.NoError(t, prove(with(svc.Adapter().ProofNonce())))
}

// A proof that was used stays used when the clock goes back, and what a process had to forget needs a nonce.
func TestProofsAndClocks(t *testing.T) {
	t.Parallel()
	k := &clock{}
	svc := serviceOn(t, memstore.NewWithClock(k.Now), func(c *apitoken.Config) { c.Now = k.Now })
	p := newProver(t, "ES256")
	token := issue(t, svc, apitoken.Request{Subject: "alice", Binding: apitoken.BindDPoP(p.print), Lifetime: time.Hour}).Access.Reveal()
	used := p.proof(t, "GET", resource, token, k.Now(), nil)
	require.NoError(t, present(svc, token, used))
	k.Advance(2 * time.Minute)
	require.NoError(t, svc.Sync(context.Background()))
	require.ErrorIs(t, present(svc, token, used), apitoken.ErrInvalidProof)
	require.NoError(t, present(svc, token, p.proof(t, "GET", resource, token, k.Now(), nil)))
	k.Advance(-2 * time.Minute)
	require.NoError(t, svc.Sync(context.Background()))
	require.Error(t, present(svc, token, used), "seen before the clock went back")
}
