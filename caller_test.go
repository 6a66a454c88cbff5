package apitoken_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"math/big"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	gojwt "github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
)

// keySetOf is a JWK set of the provers' public keys, with members added to the first.
func keySetOf(t testing.TB, p *prover, more map[string]any) []byte {
	t.Helper()
	key := maps.Clone(p.jwk)
	maps.Copy(key, more)
	doc, err := json.Marshal(map[string]any{"keys": []any{key}})
	require.NoError(t, err)
	return doc
}

// assertion signs claims as a private_key_jwt client does.
func (p *prover) assertion(t testing.TB, header, claims map[string]any) string {
	t.Helper()
	tok := gojwt.NewWithClaims(p.method, gojwt.MapClaims(claims))
	maps.Copy(tok.Header, header)
	text, err := tok.SignedString(p.key)
	require.NoError(t, err)
	return text
}

func TestAClientProvesItselfByAnAssertion(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, func(c *apitoken.Config) { c.Validation.Skew = 30 * time.Second })
	p, other := newProver(t, "ES256"), newProver(t, "ES256")
	c, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "worker", AuthMethod: "private_key_jwt", Keys: keySetOf(t, p, nil), GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{"jobs"}})
	require.NoError(t, err)
	require.True(t, secret.IsZero(), "a client with a key has no secret")
	const endpoint = testIssuer + "/token"
	good := func() map[string]any {
		return map[string]any{"iss": c.ID, "sub": c.ID, "aud": testIssuer, "jti": rand.Text(), "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix()}
	}
	with := func(change func(map[string]any)) map[string]any {
		m := good()
		change(m)
		return m
	}
	auth := func(text string) apitoken.ClientAuth {
		return apitoken.ClientAuth{Assertion: apitoken.NewSecret(text), Endpoints: []string{endpoint}}
	}
	for name, text := range map[string]string{
		"issuer as aud":              p.assertion(t, nil, good()),
		"endpoint as aud":            p.assertion(t, nil, with(func(m map[string]any) { m["aud"] = []string{endpoint} })),
		"typ of its own":             p.assertion(t, map[string]any{"typ": "client-authentication+jwt"}, good()),
		"no iat":                     p.assertion(t, nil, with(func(m map[string]any) { delete(m, "iat") })),
		"both as aud":                p.assertion(t, nil, with(func(m map[string]any) { m["aud"] = []string{endpoint, testIssuer} })),
		"a clock that is 20 s ahead": p.assertion(t, nil, with(func(m map[string]any) { m["iat"] = time.Now().Add(20 * time.Second).Unix() })),
	} {
		got, err := svc.Clients.Authenticate(ctx, auth(text))
		require.NoError(t, err, name)
		require.Equal(t, "worker", got.ID)
		_, err = svc.Clients.Authenticate(ctx, auth(text))
		require.ErrorIs(t, err, apitoken.ErrInvalidClient, "%s: an assertion is good once", name)
	}
	for name, text := range map[string]string{
		"another key":       other.assertion(t, nil, good()),
		"another issuer":    p.assertion(t, nil, with(func(m map[string]any) { m["iss"] = "x" })),
		"another subject":   p.assertion(t, nil, with(func(m map[string]any) { m["sub"] = "x" })),
		"another audience":  p.assertion(t, nil, with(func(m map[string]any) { m["aud"] = "https://other.example.com" })),
		"one besides ours":  p.assertion(t, nil, with(func(m map[string]any) { m["aud"] = []string{testIssuer, "https://other.example.com"} })),
		"no audience":       p.assertion(t, nil, with(func(m map[string]any) { delete(m, "aud") })),
		"no jti":            p.assertion(t, nil, with(func(m map[string]any) { delete(m, "jti") })),
		"no exp":            p.assertion(t, nil, with(func(m map[string]any) { delete(m, "exp") })),
		"expired":           p.assertion(t, nil, with(func(m map[string]any) { m["exp"] = time.Now().Add(-time.Second).Unix() })),
		"lives for ever":    p.assertion(t, nil, with(func(m map[string]any) { m["exp"] = time.Now().Add(48 * time.Hour).Unix() })),
		"not valid yet":     p.assertion(t, nil, with(func(m map[string]any) { m["nbf"] = time.Now().Add(time.Hour).Unix() })),
		"another kind":      p.assertion(t, map[string]any{"typ": "at+jwt"}, good()),
		"a proof":           p.assertion(t, map[string]any{"typ": "dpop+jwt"}, good()),
		"an unknown kid":    p.assertion(t, map[string]any{"kid": "nobody"}, good()),
		"a key of its own":  p.assertion(t, map[string]any{"jwk": other.jwk}, good()),
		"no JWT":            "x.y.z",
		"without signature": "e30.e30.",
	} {
		_, err := svc.Clients.Authenticate(ctx, auth(text))
		require.Error(t, err, name)
		require.True(t, errors.Is(err, apitoken.ErrInvalidClient) || errors.Is(err, apitoken.ErrLimited), "%s: %v", name, err)
	}
	_, err = svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: "worker", Secret: apitoken.NewSecret("x"), Assertion: apitoken.NewSecret(p.assertion(t, nil, good()))})
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest, "one credential in a request")
	_, err = svc.Clients.RotateSecret(ctx, "worker", 0)
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
}

func TestOneAssertionIsUsedOnce(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	svc := serviceOn(t, st, nil)
	p := newProver(t, "EdDSA")
	c, _, err := svc.Clients.Create(ctx, apitoken.Client{ID: "worker", AuthMethod: "private_key_jwt", Keys: keySetOf(t, p, nil), GrantTypes: []string{"client_credentials"}})
	require.NoError(t, err)
	second := serviceOn(t, st, nil)
	text := p.assertion(t, nil, map[string]any{"iss": c.ID, "sub": c.ID, "aud": testIssuer, "jti": "1", "exp": time.Now().Add(time.Minute).Unix()})
	var won atomic.Int32
	var wg sync.WaitGroup
	for i := range 64 {
		on := svc
		if i%2 == 1 {
			on = second
		}
		wg.Go(func() {
			_, auth, err := on.Clients.Confirm(ctx, apitoken.ClientAuth{Assertion: apitoken.NewSecret(text)})
			if err != nil {
				return
			}
			won.Add(1)
			_, err = on.Issue(ctx, apitoken.Request{Auth: auth})
			require.NoError(t, err, "the winner's outcome carries on")
			_, err = svc.Issue(ctx, apitoken.Request{Auth: auth})
			if on != svc {
				require.ErrorIs(t, err, apitoken.ErrInvalidClient, "not to another service")
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, won.Load(), "an assertion is good once in all processes")
}

func selfSigned(t testing.TB, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	p := newProver(t, "ES256")
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "worker", Organization: []string{"Acme, Inc."}}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"worker.example.com"}, IPAddresses: []net.IP{net.IPv4(10, 0, 0, 7)}, EmailAddresses: []string{"w@example.com"}}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, p.key.Public(), p.key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return cert
}

func TestAClientProvesItselfByItsCertificate(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	cert := selfSigned(t, nil)
	for _, name := range []string{"dn:CN=worker,O=Acme\\, Inc.", "dns:worker.example.com", "ip:10.0.0.7", "email:w@example.com"} {
		c, _, err := svc.Clients.Create(ctx, apitoken.Client{AuthMethod: "tls_client_auth", TLSName: name})
		require.NoError(t, err)
		_, err = svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: c.ID, Certificate: cert, CertificateVerified: true})
		require.NoError(t, err, name)
		_, err = svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: c.ID, Certificate: cert})
		require.ErrorIs(t, err, apitoken.ErrInvalidClient, "%s: anybody can write a name into a certificate of his own", name)
		_, err = svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: c.ID})
		require.ErrorIs(t, err, apitoken.ErrInvalidClient)
		other := selfSigned(t, func(x *x509.Certificate) {
			x.Subject.CommonName, x.DNSNames, x.IPAddresses, x.EmailAddresses = "other", []string{"o.example.com"}, nil, nil
		})
		_, err = svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: c.ID, Certificate: other, CertificateVerified: true})
		require.ErrorIs(t, err, apitoken.ErrInvalidClient, name)
	}
	sum := sha256.Sum256(cert.Raw)
	for _, more := range []map[string]any{{"x5c": []string{base64.StdEncoding.EncodeToString(cert.Raw)}}, {"x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])}} {
		key := newProver(t, "ES256")
		if more["x5c"] != nil {
			key.jwk = jwkOfCertificate(t, cert)
		}
		c, _, err := svc.Clients.Create(ctx, apitoken.Client{AuthMethod: "self_signed_tls_client_auth", Keys: keySetOf(t, key, more)})
		require.NoError(t, err)
		_, err = svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: c.ID, Certificate: cert})
		require.NoError(t, err)
		_, err = svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: c.ID, Certificate: selfSigned(t, nil), CertificateVerified: true})
		require.ErrorIs(t, err, apitoken.ErrInvalidClient, "another certificate of the same name")
	}
	old := selfSigned(t, func(x *x509.Certificate) { x.NotAfter = time.Now().Add(-time.Minute) })
	sum = sha256.Sum256(old.Raw)
	c, _, err := svc.Clients.Create(ctx, apitoken.Client{AuthMethod: "self_signed_tls_client_auth", Keys: keySetOf(t, newProver(t, "ES256"), map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])})})
	require.NoError(t, err)
	_, err = svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: c.ID, Certificate: old})
	require.ErrorIs(t, err, apitoken.ErrInvalidClient, "a certificate that has expired")

	// What a connection showed when it began may have ended since, also where its chain was verified then.
	clk := &clock{}
	later := service(t, func(c *apitoken.Config) { c.Now = clk.Now })
	_, _, err = later.Clients.Create(ctx, apitoken.Client{ID: "worker", AuthMethod: "tls_client_auth", TLSName: "dns:worker.example.com"})
	require.NoError(t, err)
	auth := apitoken.ClientAuth{ID: "worker", Certificate: cert, CertificateVerified: true}
	require.NoError(t, knows(later, auth))
	clk.Advance(time.Until(cert.NotAfter) + time.Second)
	require.ErrorIs(t, knows(later, auth), apitoken.ErrInvalidClient)
}

func jwkOfCertificate(t testing.TB, cert *x509.Certificate) map[string]any {
	t.Helper()
	raw, err := (&jose.JSONWebKey{Key: cert.PublicKey}).MarshalJSON()
	require.NoError(t, err)
	var m map[string]any
	require.NoError(t, json.Unmarshal(raw, &m))
	return m
}

func TestClientsThatContradictThemselves(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	keys := keySetOf(t, newProver(t, "ES256"), nil)
	for name, c := range map[string]apitoken.Client{
		"an unknown method":               {AuthMethod: "client_secret_jwt"},
		"a public client with a method":   {Public: true, AuthMethod: "private_key_jwt", Keys: keys},
		"a key method without keys":       {AuthMethod: "private_key_jwt"},
		"an empty set":                    {AuthMethod: "private_key_jwt", Keys: []byte(`{"keys":[]}`)},
		"no key set":                      {AuthMethod: "private_key_jwt", Keys: []byte(`[]`)},
		"a secret key":                    {AuthMethod: "private_key_jwt", Keys: []byte(`{"keys":[{"kty":"oct","k":"AAAA"}]}`)},
		"tls without a name":              {AuthMethod: "tls_client_auth"},
		"tls with half a name":            {AuthMethod: "tls_client_auth", TLSName: "dns:"},
		"self-signed without certificate": {AuthMethod: "self_signed_tls_client_auth", Keys: keys},
		"two bindings":                    {BindDPoP: true, BindCertificate: true},
		"a fragment":                      {RedirectURIs: []string{"https://a.example.com/#x"}},
		"a name for nothing":              {TLSName: "dns:a.example.com"},
	} {
		_, _, err := svc.Clients.Create(ctx, c)
		require.ErrorIs(t, err, apitoken.ErrInvalidRequest, name)
	}
}

func TestARegistrationTokenIsForOneClientAndOneUse(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	a, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "a"})
	require.NoError(t, err)
	_, _, err = svc.Clients.Create(ctx, apitoken.Client{ID: "b"})
	require.NoError(t, err)
	token, err := svc.Clients.RegistrationToken(ctx, "a")
	require.NoError(t, err)
	got, err := svc.Clients.Registered(ctx, "a", token)
	require.NoError(t, err)
	require.Equal(t, a.ID, got.ID)
	for _, id := range []string{"b", "c"} {
		_, err = svc.Clients.Registered(ctx, id, token)
		require.ErrorIs(t, err, apitoken.ErrInvalidToken)
	}
	_, err = svc.Clients.Registered(ctx, "a", secret)
	require.ErrorIs(t, err, apitoken.ErrInvalidToken, "a client secret is no registration token")
	_, err = svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: "a", Secret: token})
	require.ErrorIs(t, err, apitoken.ErrInvalidClient, "a registration token is no client secret")
	next, err := svc.Clients.RegistrationToken(ctx, "a")
	require.NoError(t, err)
	_, err = svc.Clients.Registered(ctx, "a", token)
	require.ErrorIs(t, err, apitoken.ErrInvalidToken, "a new one ends the old one")
	_, err = svc.Clients.Update(ctx, "a", func(c *apitoken.Client) error { c.Disabled = true; return nil })
	require.NoError(t, err)
	_, err = svc.Clients.Registered(ctx, "a", next)
	require.ErrorIs(t, err, apitoken.ErrInvalidToken)
}

func TestANoteIsChangedByOneAtATime(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	at := &clock{}
	svc := service(t, func(c *apitoken.Config) { c.Now = at.Now })
	_, err := svc.Adapter().Note(ctx, "x")
	require.ErrorIs(t, err, apitoken.ErrNotFound)
	put := func(n *apitoken.Note) error {
		n.Data, n.Expires = []byte("1"), at.Now().Add(time.Minute)
		return nil
	}
	require.NoError(t, svc.Adapter().ChangeNote(ctx, "x", put))
	taken := errors.New("taken")
	var won atomic.Int32
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			err := svc.Adapter().ChangeNote(ctx, "x", func(n *apitoken.Note) error {
				if string(n.Data) != "1" {
					return taken
				}
				n.Data = []byte("2")
				return nil
			})
			if err == nil {
				won.Add(1)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, won.Load())
	n, err := svc.Adapter().Note(ctx, "x")
	require.NoError(t, err)
	require.Equal(t, "2", string(n.Data))
	at.Advance(2 * time.Minute)
	_, err = svc.Adapter().Note(ctx, "x")
	require.ErrorIs(t, err, apitoken.ErrNotFound, "a note ends by its time")
	require.NoError(t, svc.Adapter().ChangeNote(ctx, "x", put), "and another one takes its name")
	require.NoError(t, svc.Adapter().ChangeNote(ctx, "x", func(n *apitoken.Note) error { n.Expires = at.Now(); return nil }))
	_, err = svc.Adapter().Note(ctx, "x")
	require.ErrorIs(t, err, apitoken.ErrNotFound)
	for name, f := range map[string]func(*apitoken.Note) error{
		"too large": func(n *apitoken.Note) error {
			n.Data, n.Expires = make([]byte, 9<<10), at.Now().Add(time.Minute)
			return nil
		},
		"for ever":   func(n *apitoken.Note) error { return nil },
		"over a day": func(n *apitoken.Note) error { n.Expires = at.Now().Add(48 * time.Hour); return nil },
	} {
		require.ErrorIs(t, svc.Adapter().ChangeNote(ctx, "y", f), apitoken.ErrInvalidRequest, name)
	}
}

// A grant may be for several resources, and each access token for one of them (RFC 8707 §2.2).
func TestAnAccessTokenIsForFewerResourcesThanItsGrant(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	const a, b = "https://a.example.com", "https://b.example.com"
	svc := service(t, func(c *apitoken.Config) { c.Audiences = []string{a, b} })
	prepare := func() string {
		code, err := svc.Prepare(ctx, apitoken.Request{Subject: "alice", Audiences: []string{a, b}, Refresh: true}, apitoken.Ticket{Lifetime: time.Minute})
		require.NoError(t, err)
		return code.Reveal()
	}
	code := prepare()
	_, err := svc.Redeem(ctx, apitoken.Redemption{Ticket: code, Audiences: []string{testAudience}})
	require.ErrorIs(t, err, apitoken.ErrInvalidTarget, "not what was granted")
	i, err := svc.Redeem(ctx, apitoken.Redemption{Ticket: code, Audiences: []string{b}})
	require.NoError(t, err, "a refused redemption spends nothing")
	require.Equal(t, []string{b}, i.Token.Audiences())
	next, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal(), Audiences: []string{a}})
	require.NoError(t, err)
	require.Equal(t, []string{a}, next.Token.Audiences())
	again, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
	require.NoError(t, err)
	require.Equal(t, []string{a}, again.Token.Audiences(), "a repeated request gets the same answer")
	all, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: next.Refresh.Reveal(), Audiences: []string{}})
	require.NoError(t, err)
	require.Equal(t, []string{a, b}, all.Token.Audiences(), "the grant still has both")
	_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: all.Refresh.Reveal(), Audiences: []string{testAudience}})
	require.ErrorIs(t, err, apitoken.ErrInvalidTarget)
	_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: all.Refresh.Reveal(), Audiences: []string{a, a}})
	require.ErrorIs(t, err, apitoken.ErrInvalidTarget)
}

// A configuration file may hold the hash of a secret: the client presents the secret, and the hash itself is none.
func TestHashedSecrets(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	const clear = "correct horse battery staple"
	hash, err := apitoken.HashSecret(apitoken.NewSecret(clear))
	require.NoError(t, err)
	require.NotContains(t, hash, clear)
	c := apitoken.Client{ID: "worker", GrantTypes: []string{"client_credentials"}}
	for range 2 { // the second time there is nothing to write
		require.NoError(t, svc.Clients.Declare(ctx, c, apitoken.NewSecret(hash)))
	}
	require.Len(t, events(t, svc, apitoken.EventQuery{Type: event.ClientChanged}), 1)
	_, err = svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: "worker", Secret: apitoken.NewSecret(clear)})
	require.NoError(t, err)
	_, err = svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: "worker", Secret: apitoken.NewSecret(hash)})
	require.ErrorIs(t, err, apitoken.ErrInvalidClient)
	require.ErrorIs(t, svc.Clients.Declare(ctx, c, apitoken.NewSecret(hash[:len(hash)-4])), apitoken.ErrInvalidRequest)
	_, err = apitoken.HashSecret(apitoken.NewSecret("short"))
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
}

// A registration token that is replaced while its holder changes the client changes nothing.
func TestARegistrationTokenThatEndsDuringAChange(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	_, _, token, err := svc.Clients.Register(ctx, apitoken.Client{ID: "web", Name: "before", GrantTypes: []string{"client_credentials"}})
	require.NoError(t, err)
	_, err = svc.Clients.Reregister(ctx, "web", token, func(c *apitoken.Client) error { c.Name = "changed"; return nil })
	require.NoError(t, err)
	_, err = svc.Clients.Reregister(ctx, "web", token, func(c *apitoken.Client) error {
		c.Name = "too late"
		_, err := svc.Clients.RegistrationToken(ctx, "web")
		return err
	})
	require.ErrorIs(t, err, apitoken.ErrInvalidToken)
	c, err := svc.Clients.Get(ctx, "web")
	require.NoError(t, err)
	require.Equal(t, "changed", c.Name)
}
