package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
	"github.com/apitoken-go/apitoken/store/boltstore"
	"github.com/modelcontextprotocol/go-sdk/auth"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/modelcontextprotocol/go-sdk/oauthex"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const callback = "http://127.0.0.1:1/cb" // nobody listens there: the test is the browser

// start serves the example, for a client whose document is at the returned URL.
func start(t *testing.T) (base string, svc *apitoken.Service, client string) {
	t.Helper()
	const document = "/client.json"
	app := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"client_id": "https://" + r.Host + document, "client_name": "Agent", "redirect_uris": []string{callback},
			"grant_types": []string{"authorization_code", "refresh_token"}, "token_endpoint_auth_method": "none", "application_type": "native"})
	}))
	t.Cleanup(app.Close)
	roots := x509.NewCertPool()
	roots.AddCert(app.Certificate())

	server := httptest.NewUnstartedServer(nil)
	t.Cleanup(server.Close)
	base = "http://" + server.Listener.Addr().String()
	st, err := boltstore.Open(filepath.Join(t.TempDir(), "mcp.db"), nil)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, st.Close()) })
	svc, err = apitoken.New(apitoken.Config{Issuer: base, Audience: base + "/mcp", Store: st, InsecureKeysInStore: true, Scopes: scopes})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, svc.Close()) })
	server.Config.Handler, err = newSite(svc, base, "secret", &oauthhttp.Documents{Scopes: apitoken.Scopes{read, write},
		TLS: &tls.Config{RootCAs: roots}, InsecureReachable: netip.Addr.IsLoopback}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	server.Start()
	return base, svc, app.URL + document
}

// browser signs alice in and consents, as she would. It notes for which scopes she was asked.
type browser struct {
	t     *testing.T
	asked []string
}

var hidden = regexp.MustCompile(`name="request" value="([^"]*)"`)

func (b *browser) fetch(ctx context.Context, a *auth.AuthorizationArgs) (*auth.AuthorizationResult, error) {
	u, err := url.Parse(a.URL)
	if err != nil {
		return nil, err
	}
	b.asked = append(b.asked, u.Query().Get("scope"))
	r, err := http.Get(a.URL)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	found := hidden.FindSubmatch(text)
	if found == nil {
		return nil, errors.New(string(text))
	}
	assert.Contains(b.t, string(text), "a program on this computer")
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	r, err = client.PostForm(u.Scheme+"://"+u.Host+"/consent", url.Values{"request": {html.UnescapeString(string(found[1]))}, "user": {"alice"}, "password": {"secret"}, "decision": {"allow"}})
	if err != nil {
		return nil, err
	}
	r.Body.Close()
	to, err := r.Location()
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(to.String(), callback) || to.Query().Get("code") == "" {
		return nil, errors.New(to.String())
	}
	return &auth.AuthorizationResult{Code: to.Query().Get("code"), State: to.Query().Get("state"), Iss: to.Query().Get("iss")}, nil
}

func call(ctx context.Context, s *mcp.ClientSession, tool string, args map[string]any) ([]any, error) {
	r, err := s.CallTool(ctx, &mcp.CallToolParams{Name: tool, Arguments: args})
	if err != nil {
		return nil, err
	}
	return r.StructuredContent.(map[string]any)["notes"].([]any), r.GetError()
}

// The official Go client, as it is, knows nothing but the URL of the MCP endpoint.
func TestAClientSignsInStepsUpAndIsRevoked(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]func(t *testing.T, svc *apitoken.Service, document string) *auth.AuthorizationCodeHandlerConfig{
		"by its document": func(_ *testing.T, _ *apitoken.Service, document string) *auth.AuthorizationCodeHandlerConfig {
			return &auth.AuthorizationCodeHandlerConfig{ClientIDMetadataDocumentConfig: &auth.ClientIDMetadataDocumentConfig{URL: document}}
		},
		"by open registration": func(*testing.T, *apitoken.Service, string) *auth.AuthorizationCodeHandlerConfig {
			return &auth.AuthorizationCodeHandlerConfig{DynamicClientRegistrationConfig: &auth.DynamicClientRegistrationConfig{
				Metadata: &oauthex.ClientRegistrationMetadata{RedirectURIs: []string{callback}, GrantTypes: []string{"authorization_code", "refresh_token"}, ClientName: "Agent"}}}
		},
		"registered before": func(t *testing.T, svc *apitoken.Service, _ string) *auth.AuthorizationCodeHandlerConfig {
			c, secret, err := svc.Clients.Create(t.Context(), apitoken.Client{GrantTypes: []string{"authorization_code", "refresh_token"}, RedirectURIs: []string{callback}, Scopes: apitoken.Scopes{read, write}})
			require.NoError(t, err)
			return &auth.AuthorizationCodeHandlerConfig{PreregisteredClient: &oauthex.ClientCredentials{ClientID: c.ID, ClientSecretAuth: &oauthex.ClientSecretAuth{ClientSecret: secret.Reveal()}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			base, svc, document := start(t)
			b := &browser{t: t}
			c := config(t, svc, document)
			c.RedirectURL, c.AuthorizationCodeFetcher = callback, b.fetch
			handler, err := auth.NewAuthorizationCodeHandler(c)
			require.NoError(t, err)
			session, err := mcp.NewClient(&mcp.Implementation{Name: "agent", Version: "1"}, nil).Connect(ctx,
				&mcp.StreamableClientTransport{Endpoint: base + "/mcp", OAuthHandler: handler, MaxRetries: -1}, nil)
			require.NoError(t, err)
			defer session.Close()
			require.Equal(t, []string{"notes:read"}, b.asked, "what the first challenge names")
			got, err := call(ctx, session, "list_notes", nil)
			require.NoError(t, err)
			require.Empty(t, got)

			got, err = call(ctx, session, "add_note", map[string]any{"text": "milk"})
			require.NoError(t, err)
			require.Equal(t, []any{"milk"}, got)
			require.Len(t, b.asked, 2, "a tool that needs more asks for it")
			require.ElementsMatch(t, []string{"notes:read", "notes:write"}, strings.Fields(b.asked[1]), "and keeps what was granted")
			got, err = call(ctx, session, "delete_note", map[string]any{"number": 1})
			require.NoError(t, err)
			require.Empty(t, got)
			require.Len(t, b.asked, 2)

			source, err := handler.TokenSource(ctx)
			require.NoError(t, err)
			token, err := source.Token()
			require.NoError(t, err)
			next, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: token.RefreshToken, Auth: authOf(c)})
			require.NoError(t, err)
			require.Equal(t, apitoken.Scopes{read, write}, next.Token.Scopes())

			require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "left"))
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/mcp", strings.NewReader(`{}`))
			require.NoError(t, err)
			token.SetAuthHeader(r)
			a, err := http.DefaultClient.Do(r)
			require.NoError(t, err)
			a.Body.Close()
			require.Equal(t, http.StatusUnauthorized, a.StatusCode)
			require.Contains(t, a.Header.Get("WWW-Authenticate"), `error="invalid_token"`)
		})
	}
}

// authOf is how a client that was registered before proves itself. The others are public.
func authOf(c *auth.AuthorizationCodeHandlerConfig) apitoken.ClientAuth {
	if c.PreregisteredClient == nil {
		return apitoken.ClientAuth{}
	}
	return apitoken.ClientAuth{ID: c.PreregisteredClient.ClientID, Secret: apitoken.NewSecret(c.PreregisteredClient.ClientSecretAuth.ClientSecret)}
}

func TestTheProgramServesAndStops(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	ready := make(chan string, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, []string{"-addr", "127.0.0.1:0", "-db", filepath.Join(t.TempDir(), "mcp.db")}, slog.New(slog.DiscardHandler), func(base, password string) {
			assert.NotEmpty(t, password)
			ready <- base
		})
	}()
	base := <-ready
	r, err := http.Get(base + "/.well-known/oauth-protected-resource/mcp")
	require.NoError(t, err)
	var meta struct {
		Resource string   `json:"resource"`
		Servers  []string `json:"authorization_servers"`
		Scopes   []string `json:"scopes_supported"`
	}
	require.NoError(t, json.NewDecoder(r.Body).Decode(&meta))
	r.Body.Close()
	require.Equal(t, base+"/mcp", meta.Resource)
	require.Equal(t, []string{base}, meta.Servers)
	require.Equal(t, []string{"notes:read", "notes:write"}, meta.Scopes)

	// A stranger's page cannot send the consent form.
	post, err := http.NewRequest(http.MethodPost, base+"/consent", strings.NewReader(""))
	require.NoError(t, err)
	post.Header.Set("Origin", "https://evil.example.com")
	post.Header.Set("Sec-Fetch-Site", "cross-site")
	a, err := http.DefaultClient.Do(post)
	require.NoError(t, err)
	a.Body.Close()
	require.Equal(t, http.StatusForbidden, a.StatusCode)
	stop()
	require.NoError(t, <-ended)
	require.Error(t, run(t.Context(), []string{"-x"}, slog.New(slog.DiscardHandler), nil))
}
