package profile_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/profile"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func base64url(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// TestProviders takes an access token of each identity provider, in the form that its documentation shows, and refuses the ID token
// that comes with it.
func TestProviders(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	roles := map[string][]string{"clerk": {"orders:write"}}
	now := time.Now()
	with := func(c jwt.MapClaims, more jwt.MapClaims) jwt.MapClaims {
		out := jwt.MapClaims{"iat": now.Unix(), "exp": now.Add(time.Hour).Unix()}
		maps.Copy(out, c)
		maps.Copy(out, more)
		return out
	}
	for name, x := range map[string]struct {
		profile   *profile.Profile
		issuer    string
		audiences []string
		header    map[string]any
		access    jwt.MapClaims
		id        jwt.MapClaims // over access; nil removes
		subject   string
		tokenID   string
	}{
		"Keycloak": {profile: profile.Keycloak(), issuer: "https://kc.example.com/realms/shop", subject: "f3a1", tokenID: "j1",
			access: jwt.MapClaims{"jti": "j1", "iss": "https://kc.example.com/realms/shop", "aud": []string{audience, "account"}, "sub": "f3a1", "typ": "Bearer", "azp": "web", "sid": "s1",
				"acr": "1", "allowed-origins": []string{"https://web.example.com"}, "realm_access": map[string]any{"roles": []string{"clerk", "offline_access"}},
				"resource_access": map[string]any{"account": map[string]any{"roles": []string{"manage-account"}}}, "scope": "openid orders:read", "email_verified": true},
			id: jwt.MapClaims{"typ": "ID", "at_hash": "x"}},
		"Auth0": {profile: profile.Auth0(), issuer: "https://tenant.eu.auth0.com/", subject: "auth0|5f7c",
			access: jwt.MapClaims{"iss": "https://tenant.eu.auth0.com/", "sub": "auth0|5f7c", "aud": []string{audience, "https://tenant.eu.auth0.com/userinfo"}, "azp": "web",
				"scope": "openid profile", "permissions": []string{"orders:read", "orders:write"}},
			id: jwt.MapClaims{"nonce": "n", "azp": nil, "scope": nil}},
		"Auth0 by RFC 9068": {profile: profile.Auth0(), issuer: "https://tenant.eu.auth0.com/", subject: "auth0|5f7c", tokenID: "j2", header: map[string]any{"typ": "at+jwt"},
			access: jwt.MapClaims{"iss": "https://tenant.eu.auth0.com/", "sub": "auth0|5f7c", "aud": audience, "client_id": "web", "jti": "j2",
				"scope": "orders:read", "permissions": []string{"orders:write"}},
			id: jwt.MapClaims{"client_id": nil}},
		"Okta": {profile: profile.Okta(), issuer: "https://dev-1.okta.com/oauth2/default", subject: "alice@example.com", tokenID: "AT.1", header: map[string]any{"typ": nil},
			access: jwt.MapClaims{"ver": 1, "jti": "AT.1", "iss": "https://dev-1.okta.com/oauth2/default", "aud": audience, "cid": "0oa1", "uid": "00u1", "scp": []string{"openid", "orders:read"},
				"sub": "alice@example.com", "groups": []string{"clerk", "Everyone"}},
			id: jwt.MapClaims{"cid": nil, "at_hash": "x"}},
		"Entra ID": {profile: profile.EntraID(), issuer: "https://login.microsoftonline.com/t1/v2.0", subject: "o1", tokenID: "u1",
			access: jwt.MapClaims{"aud": audience, "iss": "https://login.microsoftonline.com/t1/v2.0", "azp": "c1", "azpacr": "1", "oid": "o1", "sub": "pairwise", "scp": "orders:read user",
				"roles": []string{"clerk"}, "tid": "t1", "uti": "u1", "ver": "2.0", "nbf": now.Unix()},
			id: jwt.MapClaims{"azp": nil, "scp": nil}},
		"Cognito": {profile: profile.Cognito(), issuer: "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_1", subject: "u1", tokenID: "j3", header: map[string]any{"typ": nil},
			audiences: []string{"app1"},
			access: jwt.MapClaims{"sub": "u1", "iss": "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_1", "client_id": "app1", "token_use": "access", "scope": "orders:read openid",
				"cognito:groups": []string{"clerk"}, "auth_time": now.Unix(), "jti": "j3", "username": "alice", "version": 2},
			id: jwt.MapClaims{"token_use": "id", "aud": "app1", "client_id": nil}},
	} {
		x.profile.RoleScopes = roles
		trust := apitoken.Trusted{Issuer: x.issuer, Keys: setOf(t, "k1", &key.PublicKey), Profile: x.profile, Audiences: x.audiences, Scopes: apitoken.Scopes{"orders"}}
		svc := newService(t, nil, trust)
		header := map[string]any{"kid": "k1"}
		maps.Copy(header, x.header)

		text := sign(t, jwt.SigningMethodRS256, key, header, with(x.access, nil))
		known(t, svc, text)
		token, err := svc.Validate(ctx, apitoken.Bearer(text))
		require.NoError(t, err, name)
		require.Equal(t, x.subject, token.Subject(), name)
		require.Equal(t, x.issuer, token.Issuer(), name)
		require.True(t, token.Allows("orders:read", "orders:write"), "%s holds %s", name, token.Scopes())
		require.Len(t, token.Scopes(), 2, "%s: only what was declared", name)
		if x.tokenID == "" {
			require.Len(t, token.ID(), 43, "%s: a digest", name)
		} else {
			require.Equal(t, x.tokenID, token.ID(), name)
		}

		id := with(x.access, x.id)
		maps.DeleteFunc(id, func(_ string, v any) bool { return v == nil })
		require.ErrorIs(t, validate(svc, sign(t, jwt.SigningMethodRS256, key, header, id)), apitoken.ErrInvalidToken, "%s: an ID token", name)
		for why, more := range map[string]jwt.MapClaims{"for another API": {"aud": "https://other.example.com", "client_id": "app2"}, "of another tenant": {"iss": "https://other.example.com/"},
			"expired": {"iat": now.Add(-2 * time.Hour).Unix(), "exp": now.Add(-time.Hour).Unix()}, "too long": {"exp": now.Add(48 * time.Hour).Unix()}} {
			require.ErrorIs(t, validate(svc, sign(t, jwt.SigningMethodRS256, key, header, with(x.access, more))), apitoken.ErrInvalidToken, "%s: %s", name, why)
		}
	}
}

// TestAttacks sends tokens that no issuer made, or that were made for another door.
func TestAttacks(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	b, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	secret := []byte(rand.Text() + rand.Text())
	der, err := x509.MarshalPKIXPublicKey(&a.PublicKey)
	require.NoError(t, err)
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})

	until := time.Now().Add(time.Hour)
	rs := profile.GolangJWT(until, profile.Key{Alg: "RS256", Key: &a.PublicKey})
	rs.Iss = []string{"a", issuer} // also under the service's own name
	hs := profile.GolangJWT(until, profile.Key{Alg: "HS256", Key: secret}, profile.Key{Alg: "HS256", Key: []byte(rand.Text() + rand.Text())})
	hs.Iss = []string{"b"}
	named := profile.GolangJWT(until)
	named.Iss = nil
	svc := newService(t, func(c *apitoken.Config) {
		c.Trust = append(c.Trust, apitoken.Trusted{Issuer: "second", Profile: hs, Scopes: apitoken.Scopes{"orders"}},
			apitoken.Trusted{Issuer: "third", Profile: named, Keys: setOf(t, "b", &b.PublicKey), Scopes: apitoken.Scopes{"orders"}})
	}, apitoken.Trusted{Issuer: "old", Profile: rs, Scopes: apitoken.Scopes{"orders"}})

	claims := func(iss string) jwt.MapClaims {
		c := jwt.MapClaims{"iss": iss, "sub": "alice", "iat": time.Now().Unix(), "exp": until.Unix()}
		if iss == "" {
			delete(c, "iss")
		}
		return c
	}
	RS, HS := jwt.SigningMethodRS256, jwt.SigningMethodHS256
	good := sign(t, RS, a, nil, claims("a"))
	require.NoError(t, validate(svc, good))
	require.NoError(t, validate(svc, sign(t, RS, a, nil, claims(issuer))), "an old token under our own iss is known by its typ")
	require.NoError(t, validate(svc, sign(t, HS, secret, nil, claims("b"))))
	byKID := sign(t, RS, b, map[string]any{"kid": "b"}, claims("third"))
	known(t, svc, byKID)
	require.NoError(t, validate(svc, byKID))
	ours, err := svc.Issue(ctx, apitoken.Request{Subject: "alice"})
	require.NoError(t, err)
	require.NoError(t, validate(svc, ours.Access.Reveal()))

	retyped := func(token, typ string) string {
		head, rest, _ := strings.Cut(token, ".")
		raw, err := base64.RawURLEncoding.DecodeString(head)
		require.NoError(t, err)
		return base64url([]byte(strings.Replace(string(raw), `"at+jwt"`, `"`+typ+`"`, 1))) + "." + rest
	}
	signed := func(header, payload string) string { // any text, with a good signature of the old secret
		input := base64url([]byte(header)) + "." + base64url([]byte(payload))
		sig, err := HS.Sign(input, secret)
		require.NoError(t, err)
		return input + "." + base64url(sig)
	}
	const head = `{"alg":"HS256","typ":"JWT"}`
	times := `"iat":` + json.Number(itoa(time.Now().Unix())).String() + `,"exp":` + itoa(until.Unix())
	require.NoError(t, validate(svc, signed(head, `{"iss":"b","sub":"alice",`+times+`}`)))
	for name, token := range map[string]string{
		"HS256 with the text of the public key":       sign(t, HS, text, nil, claims("a")),
		"HS256 with the DER of the public key":        sign(t, HS, der, nil, claims("a")),
		"HS256 with the modulus":                      sign(t, HS, a.N.Bytes(), nil, claims("a")),
		"HS256 with the text, by a kid":               sign(t, HS, text, map[string]any{"kid": "b"}, claims("third")),
		"none":                                        sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil, claims("a")),
		"none, with the signature of another":         base64url([]byte(`{"alg":"none","typ":"JWT"}`)) + good[strings.IndexByte(good, '.'):],
		"another algorithm of the same key":           sign(t, jwt.SigningMethodRS512, a, nil, claims("a")),
		"PSS of the same key":                         sign(t, jwt.SigningMethodPS256, a, nil, claims("a")),
		"HS512 with the secret":                       sign(t, jwt.SigningMethodHS512, secret, nil, claims("b")),
		"issuer A with B's key":                       sign(t, RS, b, nil, claims("a")),
		"issuer A with B's key and kid":               sign(t, RS, b, map[string]any{"kid": "b"}, claims("a")),
		"issuer B with A's key":                       sign(t, RS, a, map[string]any{"kid": "b"}, claims("third")),
		"issuer A with the secret of the second":      sign(t, HS, secret, nil, claims("a")),
		"our iss with the secret of the second":       sign(t, HS, secret, nil, claims(issuer)),
		"our iss and typ with the old key":            sign(t, RS, a, map[string]any{"typ": "at+jwt"}, claims(issuer)),
		"the issuer's name and our typ":               sign(t, RS, a, map[string]any{"typ": "at+jwt"}, claims("old")),
		"the issuer's name, which is not its iss":     sign(t, RS, a, nil, claims("old")),
		"no iss, where all have one":                  sign(t, RS, a, nil, claims("")),
		"our access token as an old one":              retyped(ours.Access.Reveal(), "JWT"),
		"our access token as one without a known typ": retyped(ours.Access.Reveal(), "logout+jwt"),
		"another typ":                                 sign(t, RS, a, map[string]any{"typ": "secevent+jwt"}, claims("a")),
		"an unknown kid":                              sign(t, HS, secret, map[string]any{"kid": "x"}, claims("b")),
		"a claim twice":                               signed(head, `{"iss":"b","sub":"bob","sub":"alice",`+times+`}`),
		"a claim twice, in another case":              signed(head, `{"iss":"b","sub":"alice","Sub":"bob",`+times+`}`),
		"a claim twice, with an escape":               signed(head, `{"iss":"b","sub":"alice","s\u0075b":"bob",`+times+`}`),
		"a name twice inside a claim":                 signed(head, `{"iss":"b","sub":"alice","x":{"y":1,"y":2},`+times+`}`),
		"a header member twice":                       signed(`{"alg":"HS256","alg":"none","typ":"JWT"}`, `{"iss":"b","sub":"alice",`+times+`}`),
		"a header with a key":                         signed(`{"alg":"HS256","typ":"JWT","jwk":{}}`, `{"iss":"b","sub":"alice",`+times+`}`),
		"a header with crit":                          signed(`{"alg":"HS256","typ":"JWT","crit":["exp"]}`, `{"iss":"b","sub":"alice",`+times+`}`),
		"something behind the object":                 signed(head, `{"iss":"b","sub":"alice",`+times+`}{}`),
		"a list":                                      signed(head, `["b"]`),
		"an iss that is no text":                      signed(head, `{"iss":["b"],"sub":"alice",`+times+`}`),
		"a subject that is a fraction":                signed(head, `{"iss":"b","sub":1.5,`+times+`}`),
		"a subject with a control character":          signed(head, `{"iss":"b","sub":"a\u0000b",`+times+`}`),
		"an empty subject":                            signed(head, `{"iss":"b","sub":"",`+times+`}`),
		"no subject":                                  signed(head, `{"iss":"b",`+times+`}`),
		"no exp":                                      signed(head, `{"iss":"b","sub":"alice","iat":`+itoa(time.Now().Unix())+`}`),
		"no iat":                                      signed(head, `{"iss":"b","sub":"alice","exp":`+itoa(until.Unix())+`}`),
		"exp as a text":                               signed(head, `{"iss":"b","sub":"alice","iat":1,"exp":"`+itoa(until.Unix())+`"}`),
		"for another API":                             signed(head, `{"iss":"b","sub":"alice","aud":"https://other.example.com",`+times+`}`),
		"bound to a key that nobody proved":           signed(head, `{"iss":"b","sub":"alice","cnf":{"jkt":"x"},`+times+`}`),
		"bound to something unknown":                  signed(head, `{"iss":"b","sub":"alice","cnf":{"y":1},`+times+`}`),
		"huge":                                        signed(head, `{"iss":"b","sub":"alice","x":"`+strings.Repeat("x", 1<<20)+`",`+times+`}`),
		"many members":                                signed(head, `{"iss":"b","sub":"alice","x":[`+strings.Repeat("0,", 4000)+`0],`+times+`}`),
		"deep":                                        signed(head, `{"iss":"b","sub":"alice","x":`+strings.Repeat("[", 500)+strings.Repeat("]", 500)+`,`+times+`}`),
		"no signature":                                good[:strings.LastIndexByte(good, '.')+1],
	} {
		require.ErrorIs(t, validate(svc, token), apitoken.ErrInvalidToken, name)
		require.NotErrorIs(t, validate(svc, token), apitoken.ErrExpired, name)
	}

	// An old token makes nothing that outlives it.
	token, err := svc.Validate(ctx, apitoken.Bearer(good))
	require.NoError(t, err)
	_, _, err = svc.APIKeys.For(token).Create(ctx, apitoken.APIKeyRequest{Name: "x"})
	require.ErrorIs(t, err, apitoken.ErrDenied)
}

// known waits until v can tell whether token is good: keys and rules are read in the background.
func known(t *testing.T, v apitoken.Validator, token string) {
	t.Helper()
	require.Eventually(t, func() bool { return !errors.Is(validate(v, token), apitoken.ErrUnavailable) }, time.Minute, time.Millisecond)
}

func itoa(n int64) string { b, _ := json.Marshal(n); return string(b) }

// TestClaims reads what services write into their tokens, by names of their own.
func TestClaims(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	secret, short := []byte(rand.Text()+rand.Text()), []byte("s3cret")
	until := time.Now().Add(time.Hour)
	p := profile.Profile{Iss: []string{""}, Keys: []profile.Key{{Alg: "HS256", Key: secret}, {Alg: "HS512", Key: short}}, NoClient: true, InsecureNoAudience: true, InsecureShortSecrets: true,
		Subject: []string{"/user/id", "sub"}, Roles: []string{"groups", "/a~1b/c~0d"}, RoleScopes: map[string][]string{"clerk": {"orders:write", "stock"}},
		Map: func(claims []byte, to *profile.Mapped) error {
			var c struct{ Locked, Panics, Admin bool }
			if err := json.Unmarshal(claims, &c); err != nil {
				return err
			}
			switch {
			case c.Locked:
				return errors.New("locked")
			case c.Panics:
				panic("the host's own")
			case c.Admin:
				to.Scopes = append(to.Scopes, "orders:delete")
			}
			return nil
		}}
	svc := newService(t, nil, trusted(p))
	for payload, want := range map[string]string{
		`"sub":"alice","scope":"orders:read other"`:                  "alice orders:read",
		`"user":{"id":42},"sub":"alice","scp":["orders:read"]`:       "42 orders:read",
		`"sub":"alice","groups":"clerk driver"`:                      "alice orders:write",
		`"sub":"alice","a/b":{"c~d":["clerk"]}`:                      "alice orders:write",
		`"sub":"alice","Admin":true`:                                 "alice orders:delete",
		`"sub":"alice","exp":` + itoa(until.Unix()) + `.5`:           "alice ",
		`"sub":"alice","locked":true`:                                "",
		`"sub":"alice","panics":true`:                                "",
		`"sub":"alice","scope":7`:                                    "",
		`"sub":"alice","nonce":"n"`:                                  "",
		`"user":{"id":-1},"sub":"alice"`:                             "",
		`"user":{"id":"` + strings.Repeat("x", 256) + `"},"sub":"a"`: "",
	} {
		if !strings.Contains(payload, `"exp"`) {
			payload += `,"exp":` + itoa(until.Unix())
		}
		payload = `{` + payload + `,"iat":` + itoa(time.Now().Unix()) + `}`
		for alg, key := range map[string][]byte{"HS256": secret, "HS512": short} {
			input := base64url([]byte(`{"alg":"`+alg+`"}`)) + "." + base64url([]byte(payload))
			sig, err := jwt.GetSigningMethod(alg).Sign(input, key)
			require.NoError(t, err)
			token, err := svc.Validate(ctx, apitoken.Bearer(input+"."+base64url(sig)))
			if want == "" {
				require.ErrorIs(t, err, apitoken.ErrInvalidToken, payload)
				continue
			}
			require.NoError(t, err, payload)
			require.Equal(t, want, token.Subject()+" "+token.Scopes().String(), payload)
		}
	}
}

// TestWrongProfiles: what would weaken a check is an error at start.
func TestWrongProfiles(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	require.NoError(t, err)
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	require.NoError(t, err)
	secret, until := []byte(rand.Text()+rand.Text()), time.Now().Add(time.Hour)
	hs := profile.Key{Alg: "HS256", Key: secret}
	old := func(p profile.Profile) apitoken.Trusted { return apitoken.Trusted{Issuer: "old", Profile: &p} }
	for name, list := range map[string][]apitoken.Trusted{
		"a short secret":              {old(profile.Profile{Keys: []profile.Key{{Alg: "HS256", Key: secret[:31]}}})},
		"a secret short for its MAC":  {old(profile.Profile{Keys: []profile.Key{{Alg: "HS512", Key: secret[:48]}}})},
		"an empty secret":             {old(profile.Profile{Keys: []profile.Key{{Alg: "HS256", Key: []byte{}}}, InsecureShortSecrets: true})},
		"a public key as a secret":    {old(profile.Profile{Keys: []profile.Key{{Alg: "HS256", Key: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})}}})},
		"an RSA key under HS256":      {old(profile.Profile{Keys: []profile.Key{{Alg: "HS256", Key: &key.PublicKey}}})},
		"a secret under RS256":        {old(profile.Profile{Keys: []profile.Key{{Alg: "RS256", Key: secret}}})},
		"a private key":               {old(profile.Profile{Keys: []profile.Key{{Alg: "RS256", Key: key}}})},
		"a weak key":                  {old(profile.Profile{Keys: []profile.Key{{Alg: "RS256", Key: &weak.PublicKey}}})},
		"none":                        {old(profile.Profile{Keys: []profile.Key{{Alg: "none", Key: secret}}})},
		"no keys":                     {old(profile.Profile{})},
		"keys twice":                  {{Issuer: "old", Keys: keySet(nil), Profile: &profile.Profile{Keys: []profile.Key{hs}}}},
		"Own":                         {{Issuer: "old", Own: true, Profile: &profile.Profile{Keys: []profile.Key{hs}}}},
		"no exp and no end":           {old(profile.Profile{Keys: []profile.Key{hs}, InsecureNoExpiry: true})},
		"no iat and no end":           {old(profile.Profile{Keys: []profile.Key{hs}, InsecureNoIssuedAt: true})},
		"our own access tokens":       {old(profile.Profile{Keys: []profile.Key{hs}, Iss: []string{issuer}, Types: []string{"AT+JWT"}})},
		"two for the same tokens":     {old(profile.Profile{Keys: []profile.Key{hs}}), {Issuer: "older", Profile: &profile.Profile{Keys: []profile.Key{hs}, Iss: []string{"old"}, Types: []string{"jwt"}}}},
		"another's access tokens":     {{Issuer: "partner", Keys: keySet(nil), InsecureNoRevocations: true}, old(profile.Profile{Keys: []profile.Key{hs}, Iss: []string{"partner"}, Types: []string{"at+jwt"}})},
		"a type that is two":          {old(profile.Profile{Keys: []profile.Key{hs}, Types: []string{"application/at+jwt"}})},
		"the service's own as issuer": {{Issuer: issuer, Profile: profile.GolangJWT(until, hs)}},
	} {
		_, err := apitoken.New(apitoken.Config{Issuer: issuer, Audience: audience, Store: memstore.New(), InsecureKeysInStore: true, Trust: list})
		var wrong *apitoken.ConfigError
		require.ErrorAs(t, err, &wrong, name)
		require.Contains(t, err.Error(), "Trust", name)
	}
	_, err = apitoken.NewValidator(apitoken.ValidatorConfig{Audience: audience, Trust: []apitoken.Trusted{old(profile.Profile{Keys: []profile.Key{hs}})}})
	require.ErrorContains(t, err, "InsecureNoRevocations", "nobody's rules would reach them")
}
