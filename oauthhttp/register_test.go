package oauthhttp_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/oauthhttp"
)

type metadata = map[string]any

func bearer(token string) option { return header("Authorization", "Bearer "+token) }

// registrar is a site that registers clients, and an initial access token for it.
func registrar(t testing.TB, change func(*oauthhttp.Registration)) (*site, string) {
	t.Helper()
	reg := &oauthhttp.Registration{Scopes: apitoken.Scopes{"orders:read", "orders:write"}}
	if change != nil {
		change(reg)
	}
	s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) { o.Registration = reg })
	_, key, err := s.svc.APIKeys.Create(context.Background(), apitoken.APIKeyRequest{Subject: "ops", Scopes: apitoken.Scopes{oauthhttp.RegisterScope}})
	require.NoError(t, err)
	return s, key.Reveal()
}

func (s *site) register(m metadata, o ...option) *answer {
	s.t.Helper()
	return s.do(jsonRequest(s.t, "POST", "/register", m), o...)
}

func TestAProgramRegistersAClient(t *testing.T) {
	t.Parallel()
	s, initial := registrar(t, nil)
	a := s.register(metadata{"client_name": "The App", "redirect_uris": []string{callback}, "grant_types": []string{"authorization_code", "refresh_token"}, "scope": "orders:read", "logo_uri": "https://app.example.com/logo.png"}, bearer(initial))
	require.Equal(t, 201, a.StatusCode, string(a.raw))
	id, secret, token := a.text("client_id"), a.text("client_secret"), a.text("registration_access_token")
	require.Equal(t, "client_secret_basic", a.text("token_endpoint_auth_method"), "the default of RFC 7591 §2")
	require.EqualValues(t, 0, a.body["client_secret_expires_at"])
	require.Equal(t, []any{"code"}, a.body["response_types"])
	require.Equal(t, "orders:read", a.text("scope"))
	require.Equal(t, testIssuer+"/register/"+id, a.text("registration_client_uri"))
	s.secrets[id] = secret
	s.token(redemption(s.code(id)), s.as(id)).ok("it works")

	at := "/register/" + url.PathEscape(id)
	got := s.get(at, bearer(token)).ok()
	require.Equal(t, "The App", got.text("client_name"))
	require.NotContains(t, got.body, "client_secret", "shown once")
	put := func(m metadata, o ...option) *answer {
		return s.do(jsonRequest(t, "PUT", at, m), o...)
	}
	m := metadata{"client_id": id, "redirect_uris": []string{callback + "2"}, "grant_types": []string{"authorization_code"}, "client_name": "Renamed"}
	b := put(m, bearer(token)).ok()
	require.Equal(t, "Renamed", b.text("client_name"))
	require.Equal(t, []any{callback + "2"}, b.body["redirect_uris"])
	m["client_secret"] = secret
	put(m, bearer(token)).ok()
	for name, x := range map[string]metadata{
		"another ID":      {"client_id": "other", "redirect_uris": []string{callback}},
		"no ID":           {"redirect_uris": []string{callback}},
		"a chosen secret": {"client_id": id, "client_secret": "chosen-by-myself", "redirect_uris": []string{callback}},
		"made public":     {"client_id": id, "redirect_uris": []string{callback}, "token_endpoint_auth_method": "none"},
	} {
		put(x, bearer(token)).refused(400, "invalid_client_metadata", name)
	}
	k := newSigner(t)
	b = put(metadata{"client_id": id, "redirect_uris": []string{callback}, "token_endpoint_auth_method": "private_key_jwt", "jwks": metadata{"keys": []any{k.jwk}}}, bearer(token)).ok()
	require.Equal(t, "private_key_jwt", b.text("token_endpoint_auth_method"))
	s.token(redemption("x"), s.as(id)).refused(401, "invalid_client", "its secret is gone")
	s.token(merge(redemption("x"), pairsOf(s.assertion(k, id, nil))...)).refused(400, "invalid_grant", "its key counts")
	b = put(metadata{"client_id": id, "redirect_uris": []string{callback}}, bearer(token)).ok()
	require.NotEmpty(t, b.text("client_secret"), "back to a secret: a fresh one")
	s.secrets[id] = b.text("client_secret")
	pair := s.token(redemption(s.code(id)), s.as(id)).ok()

	for _, method := range []string{"GET", "DELETE"} {
		for name, o := range map[string][]option{
			"no token":        nil,
			"another token":   {bearer("x")},
			"the initial one": {bearer(initial)},
			"the secret":      {bearer(s.secrets[id])},
			"another scheme":  {s.as(id)},
			"two headers":     {bearer(token), bearer(token)},
		} {
			a := s.do(httptest.NewRequest(method, testIssuer+at, nil), o...).refused(401, "invalid_token", name)
			require.Contains(t, a.Header.Get("WWW-Authenticate"), "Bearer ", name)
		}
	}
	s.get("/register/nobody", bearer(token)).refused(401, "invalid_token", "nobody learns which clients there are")
	d := s.do(httptest.NewRequest(http.MethodDelete, testIssuer+at, nil), bearer(token))
	require.Equal(t, 204, d.StatusCode)
	s.get(at, bearer(token)).refused(401, "invalid_token", "RFC 7592 §2.3")
	_, err := s.svc.Validate(t.Context(), apitoken.Bearer(pair.text("access_token")))
	require.ErrorIs(t, err, apitoken.ErrRevoked, "all that it held ends")
	require.Equal(t, 400, s.get("/authorize?"+authorization(id).Encode()).StatusCode)
}

// However many of the writes of a change go through, whoever repeats it until it is answered has a secret that works.
func TestAChangeToASecretThatIsCutShort(t *testing.T) {
	t.Parallel()
	for writes := range int64(4) {
		s, initial := registrar(t, nil)
		k := newSigner(t)
		a := s.register(metadata{"redirect_uris": []string{callback}, "token_endpoint_auth_method": "private_key_jwt", "jwks": metadata{"keys": []any{k.jwk}}}, bearer(initial))
		require.Equal(t, 201, a.StatusCode, string(a.raw))
		id, token := a.text("client_id"), a.text("registration_access_token")
		put := func() *answer {
			return s.do(jsonRequest(t, "PUT", "/register/"+url.PathEscape(id), metadata{"client_id": id, "redirect_uris": []string{callback}}), bearer(token))
		}
		s.st.unless.Store(writes)
		s.st.writes.Store(true)
		cut := put()
		s.st.writes.Store(false)
		if writes < 3 {
			require.Equal(t, 503, cut.StatusCode, "%d writes", writes)
			cut = put()
		}
		s.secrets[id] = cut.ok().text("client_secret")
		require.NotEmpty(t, s.secrets[id], "%d writes", writes)
		s.token(redemption("x"), s.as(id)).refused(400, "invalid_grant", "it is who it says")
	}
}

func TestARegistrationNeedsItsToken(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s, initial := registrar(t, nil)
	m := metadata{"redirect_uris": []string{callback}}
	a := s.register(m).refused(401, "invalid_token")
	require.Equal(t, `Bearer realm="oauth"`, a.Header.Get("WWW-Authenticate"), "a bare challenge (RFC 6750 §3.1)")
	s.register(m, bearer("x")).refused(401, "invalid_token")
	i, err := s.svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	a = s.register(m, bearer(i.Access.Reveal())).refused(403, "insufficient_scope")
	require.Contains(t, a.Header.Get("WWW-Authenticate"), `scope="apitoken:register"`)
	_, once, err := s.svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "ops", Scopes: apitoken.Scopes{oauthhttp.RegisterScope}, MaxUses: 1})
	require.NoError(t, err)
	s.register(m, bearer(once.Reveal())).ok()
	s.register(m, bearer(once.Reveal())).refused(429, "rate_limited", "an initial token that is good for one client")
	s.register(m, bearer(initial)).ok()
	var made apitoken.Event
	for e, err := range s.svc.Events(ctx, apitoken.EventQuery{Type: event.ClientChanged}) {
		require.NoError(t, err)
		made = e
		break
	}
	require.Equal(t, "ops", made.Actor, "the audit says who registered it")
}

func TestWhatCanNotBeRegistered(t *testing.T) {
	t.Parallel()
	s, initial := registrar(t, func(r *oauthhttp.Registration) {
		r.GrantTypes = []string{"authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"}
		r.Check = func(_ context.Context, by apitoken.Token, c *apitoken.Client) error {
			switch c.Name {
			case "evil":
				return errors.New("no")
			case "later":
				return apitoken.ErrUnavailable
			case "cut":
				c.Scopes = nil
			}
			if by.IsZero() || by.Subject() != "ops" {
				return errors.New("by nobody")
			}
			return nil
		}
	})
	uris := []string{callback}
	for name, x := range map[string]struct {
		m    metadata
		code string
	}{
		"no redirect URI":          {metadata{}, "invalid_redirect_uri"},
		"an http URI":              {metadata{"redirect_uris": []string{"http://app.example.com/"}}, "invalid_redirect_uri"},
		"a script":                 {metadata{"redirect_uris": []string{"javascript:alert(1)"}}, "invalid_redirect_uri"},
		"a fragment":               {metadata{"redirect_uris": []string{callback + "#x"}}, "invalid_redirect_uri"},
		"a grant type too many":    {metadata{"redirect_uris": uris, "grant_types": []string{"client_credentials"}}, "invalid_client_metadata"},
		"an unknown grant type":    {metadata{"redirect_uris": uris, "grant_types": []string{"password"}}, "invalid_client_metadata"},
		"implicit":                 {metadata{"redirect_uris": uris, "response_types": []string{"token"}}, "invalid_client_metadata"},
		"an unknown method":        {metadata{"redirect_uris": uris, "token_endpoint_auth_method": "client_secret_jwt"}, "invalid_client_metadata"},
		"a key method without key": {metadata{"redirect_uris": uris, "token_endpoint_auth_method": "private_key_jwt"}, "invalid_client_metadata"},
		"jwks_uri":                 {metadata{"redirect_uris": uris, "token_endpoint_auth_method": "private_key_jwt", "jwks_uri": "https://app.example.com/jwks"}, "invalid_client_metadata"},
		"a name for nothing":       {metadata{"redirect_uris": uris, "tls_client_auth_san_dns": "a"}, "invalid_client_metadata"},
		"two names":                {metadata{"redirect_uris": uris, "token_endpoint_auth_method": "tls_client_auth", "tls_client_auth_san_dns": "a", "tls_client_auth_san_ip": "10.0.0.1"}, "invalid_client_metadata"},
		"more scope":               {metadata{"redirect_uris": uris, "scope": "admin"}, "invalid_client_metadata"},
		"a malformed scope":        {metadata{"redirect_uris": uris, "scope": "a  b"}, "invalid_client_metadata"},
		"a chosen ID":              {metadata{"redirect_uris": uris, "client_id": "app"}, "invalid_client_metadata"},
		"a chosen secret":          {metadata{"redirect_uris": uris, "client_secret": "app"}, "invalid_client_metadata"},
		"a statement":              {metadata{"redirect_uris": uris, "software_statement": "x.y.z"}, "unapproved_software_statement"},
		"a wrong type":             {metadata{"redirect_uris": callback}, "invalid_client_metadata"},
		"a long name":              {metadata{"redirect_uris": uris, "client_name": string(make([]byte, 200))}, "invalid_client_metadata"},
		"what the host refuses":    {metadata{"redirect_uris": uris, "client_name": "evil"}, "invalid_client_metadata"},
	} {
		s.register(x.m, bearer(initial)).refused(400, x.code, name)
	}
	s.register(metadata{"redirect_uris": uris, "client_name": "later"}, bearer(initial)).refused(503, "temporarily_unavailable")
	require.Empty(t, s.register(metadata{"redirect_uris": uris, "client_name": "cut"}, bearer(initial)).ok().text("scope"))
	r := httptest.NewRequest(http.MethodPost, testIssuer+"/register", nil)
	s.do(r, bearer(initial)).refused(400, "invalid_request", "no JSON")
	for _, body := range []string{"", "[]", "{", `{"client_name":"a","client_name":"b"}`} {
		r := formRequest("/register", body)
		r.Header.Set("Content-Type", "application/json")
		s.do(r, bearer(initial)).refused(400, "invalid_client_metadata", body)
	}
	a := s.register(metadata{"token_endpoint_auth_method": "none", "grant_types": []string{"urn:ietf:params:oauth:grant-type:device_code"}, "dpop_bound_access_tokens": true}, bearer(initial)).ok()
	require.NotContains(t, a.body, "client_secret", "a public client")
	require.Equal(t, "none", a.text("token_endpoint_auth_method"))
	require.Equal(t, true, a.body["dpop_bound_access_tokens"])
	require.Equal(t, []any{}, a.body["response_types"])
	a = s.register(metadata{"redirect_uris": uris, "token_endpoint_auth_method": "tls_client_auth", "tls_client_auth_subject_dn": "CN=app", "tls_client_certificate_bound_access_tokens": true}, bearer(initial)).ok()
	require.Equal(t, "CN=app", a.text("tls_client_auth_subject_dn"))
	require.NotContains(t, a.body, "client_secret")
}

// A member that is null was left out (RFC 7592 §2.2).
func TestNullInARegistrationIsALeftOutMember(t *testing.T) {
	t.Parallel()
	s, initial := registrar(t, nil)
	given := metadata{"redirect_uris": []string{callback}}
	want := s.register(given, bearer(initial))
	require.Equal(t, 201, want.StatusCode, string(want.raw))
	for _, name := range []string{"token_endpoint_auth_method", "grant_types", "response_types", "client_name", "scope", "jwks", "jwks_uri", "dpop_bound_access_tokens",
		"tls_client_certificate_bound_access_tokens", "tls_client_auth_subject_dn", "software_statement", "client_id", "client_secret", "logo_uri"} {
		given[name] = nil
	}
	got := s.register(given, bearer(initial))
	require.Equal(t, 201, got.StatusCode, string(got.raw))
	for _, name := range []string{"token_endpoint_auth_method", "grant_types", "response_types", "client_name", "scope", "jwks", "redirect_uris"} {
		require.Equal(t, want.body[name], got.body[name], name)
	}
	id := got.text("client_id")
	given["client_id"] = id
	put := s.do(jsonRequest(t, "PUT", "/register/"+id, given), bearer(got.text("registration_access_token"))).ok()
	require.NotContains(t, put.body, "jwks")
	require.Equal(t, want.body["scope"], put.body["scope"])
}

// What an administrator took from a client does not come back when the client sends its registration again, whether it names it
// or not; within that it may change what it has.
func TestARegistrationStaysBelowTheAdministrators(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	device, refresh, code := "urn:ietf:params:oauth:grant-type:device_code", "refresh_token", "authorization_code"
	for name, x := range map[string]struct {
		admin func(*apitoken.Client)
		put   metadata
		scope string
		types []any
		dpop  bool
	}{
		"nothing, unnamed":    {nil, metadata{}, "orders:read orders:write", []any{code}, false},
		"scopes, unnamed":     {func(c *apitoken.Client) { c.Scopes = apitoken.Scopes{"orders:read"} }, metadata{}, "orders:read", []any{code}, false},
		"scopes, named":       {func(c *apitoken.Client) { c.Scopes = apitoken.Scopes{"orders:read"} }, metadata{"scope": "orders:read orders:write"}, "orders:read", []any{code}, false},
		"all scopes, named":   {func(c *apitoken.Client) { c.Scopes = nil }, metadata{"scope": "orders:read"}, "", []any{code}, false},
		"a binding, unnamed":  {func(c *apitoken.Client) { c.BindDPoP = true }, metadata{}, "orders:read orders:write", []any{code}, true},
		"a binding, named":    {func(c *apitoken.Client) { c.BindDPoP = true }, metadata{"dpop_bound_access_tokens": false}, "orders:read orders:write", []any{code}, true},
		"no scopes, then all": {func(c *apitoken.Client) { c.Scopes = apitoken.Scopes{} }, metadata{}, "", []any{code}, false},
		"a grant type, named": {func(c *apitoken.Client) { c.GrantTypes = []string{code, refresh} }, metadata{"grant_types": []string{code, refresh, device}}, "orders:read orders:write", []any{code, refresh}, false},
		"a name, and it widens again": {func(c *apitoken.Client) { c.Name = "x" }, metadata{"grant_types": []string{code, device}},
			"orders:read orders:write", []any{code, device}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, initial := registrar(t, func(r *oauthhttp.Registration) { r.GrantTypes = []string{code, refresh, device} })
			a := s.register(metadata{"redirect_uris": []string{callback}, "grant_types": []string{code, refresh, device}}, bearer(initial))
			require.Equal(t, 201, a.StatusCode, string(a.raw))
			id, token := a.text("client_id"), a.text("registration_access_token")
			if x.admin != nil {
				_, err := s.svc.Clients.Update(ctx, id, func(c *apitoken.Client) error { x.admin(c); return nil })
				require.NoError(t, err)
			}
			x.put["client_id"], x.put["redirect_uris"] = id, []string{callback}
			for range 2 { // it is no different the second time
				b := s.do(jsonRequest(t, "PUT", "/register/"+url.PathEscape(id), x.put), bearer(token)).ok()
				require.Equal(t, x.scope, b.text("scope"))
				require.Equal(t, x.types, b.body["grant_types"])
				if dpop, _ := b.body["dpop_bound_access_tokens"].(bool); dpop != x.dpop {
					t.Fatalf("bound: %v", dpop)
				}
			}
			// Less is the client's own choice, and what it may have comes back.
			x.put["scope"] = ""
			require.Empty(t, s.do(jsonRequest(t, "PUT", "/register/"+url.PathEscape(id), x.put), bearer(token)).ok().text("scope"))
			x.put["scope"] = "orders:read orders:write"
			require.Equal(t, x.scope, s.do(jsonRequest(t, "PUT", "/register/"+url.PathEscape(id), x.put), bearer(token)).ok().text("scope"))
			// The administrator decides again.
			_, err := s.svc.Clients.Update(ctx, id, func(c *apitoken.Client) error {
				c.Scopes, c.BindDPoP, c.GrantTypes = apitoken.Scopes{"orders:write"}, false, []string{code, device}
				return nil
			})
			require.NoError(t, err)
			b := s.do(jsonRequest(t, "PUT", "/register/"+url.PathEscape(id), metadata{"client_id": id, "redirect_uris": []string{callback}, "grant_types": []string{code, refresh, device}}), bearer(token)).ok()
			require.Equal(t, "orders:write", b.text("scope"))
			if name != "a name, and it widens again" { // there the list was the same, and nothing was decided
				require.Equal(t, []any{code, device}, b.body["grant_types"])
			}
			require.NotContains(t, b.body, "dpop_bound_access_tokens")
		})
	}
}

// Where the host took every grant type that a client asks for, the client reads that nothing is to be had.
func TestARegistrationOfWhichNothingIsLeft(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	code, refresh := "authorization_code", "refresh_token"
	for _, left := range [][]string{{refresh}, {}, nil} {
		s, initial := registrar(t, nil)
		a := s.register(metadata{"redirect_uris": []string{callback}, "grant_types": []string{code, refresh}}, bearer(initial)).ok()
		id := a.text("client_id")
		_, err := s.svc.Clients.Update(ctx, id, func(c *apitoken.Client) error { c.GrantTypes = left; return nil })
		require.NoError(t, err)
		s.do(jsonRequest(t, "PUT", "/register/"+url.PathEscape(id), metadata{"client_id": id, "redirect_uris": []string{callback}}),
			bearer(a.text("registration_access_token"))).refused(400, "invalid_client_metadata")
		c, err := s.svc.Clients.Get(ctx, id)
		require.NoError(t, err)
		require.Len(t, c.GrantTypes, len(left), "a refused change changes nothing")
	}
}

// A client that the host made and then let manage itself has what it was given, and no more than that later.
func TestAClientOfTheHostThatManagesItself(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	code, refresh := "authorization_code", "refresh_token"
	s, _ := registrar(t, nil)
	_, _, err := s.svc.Clients.Create(ctx, apitoken.Client{ID: "web", Scopes: apitoken.Scopes{"orders:read"}, GrantTypes: []string{code},
		RedirectURIs: []string{callback}, BindDPoP: true})
	require.NoError(t, err)
	token, err := s.svc.Clients.RegistrationToken(ctx, "web")
	require.NoError(t, err)
	put := func(m metadata) *answer {
		m["client_id"], m["redirect_uris"] = "web", []string{callback}
		return s.do(jsonRequest(t, "PUT", "/register/web", m), bearer(token.Reveal())).ok()
	}
	for _, m := range []metadata{{}, {"scope": ""}, {"scope": "orders:read orders:write", "grant_types": []string{code, refresh}}} {
		a := put(m)
		want := "orders:read"
		if m["scope"] == "" {
			want = ""
		}
		require.Equal(t, want, a.text("scope"))
		require.Equal(t, []any{code}, a.body["grant_types"])
		require.Equal(t, true, a.body["dpop_bound_access_tokens"])
		token, err = s.svc.Clients.RegistrationToken(ctx, "web") // a new one changes nothing of it
		require.NoError(t, err)
	}
}
