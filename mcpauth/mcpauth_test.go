package mcpauth_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/mcpauth"
	"github.com/modelcontextprotocol/go-sdk/auth"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	read  apitoken.Scope = "notes:read"
	write apitoken.Scope = "notes:write"
)

// server is an MCP server with three tools: who says who calls, delete needs notes:write, wait lasts until its context ends.
type server struct {
	*httptest.Server
	svc     *apitokentest.Service
	guard   *mcpauth.Guard
	started chan struct{}
	ended   chan error
}

func serve(t *testing.T, o *mcp.StreamableHTTPOptions, change ...func(*mcpauth.Options)) *server {
	t.Helper()
	s := &server{svc: apitokentest.New(t), started: make(chan struct{}, 1), ended: make(chan error, 1)}
	opts := mcpauth.Options{Resource: apitokentest.Audience, Needs: apitoken.Scopes{read}, Tools: map[string]apitoken.Scopes{"delete": {write}}}
	for _, f := range change {
		f(&opts)
	}
	s.guard = mcpauth.New(s.svc, opts)
	m := mcp.NewServer(&mcp.Implementation{Name: "notes", Version: "1"}, nil)
	m.AddReceivingMiddleware(s.guard.Middleware)
	type none struct{}
	mcp.AddTool(m, &mcp.Tool{Name: "who"}, func(ctx context.Context, r *mcp.CallToolRequest, _ none) (*mcp.CallToolResult, any, error) {
		caller := apitoken.FromContext(ctx)
		text := fmt.Sprintf("%s %s %q", caller.Subject(), caller.Scopes(), r.Extra.Header.Get("Authorization"))
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: text}}}, nil, nil
	})
	mcp.AddTool(m, &mcp.Tool{Name: "delete"}, func(context.Context, *mcp.CallToolRequest, none) (*mcp.CallToolResult, any, error) {
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: "deleted"}}}, nil, nil
	})
	mcp.AddTool(m, &mcp.Tool{Name: "wait"}, func(ctx context.Context, _ *mcp.CallToolRequest, _ none) (*mcp.CallToolResult, any, error) {
		s.started <- struct{}{}
		<-ctx.Done()
		s.ended <- context.Cause(ctx)
		return nil, nil, context.Cause(ctx)
	})
	s.Server = httptest.NewServer(s.guard.Handler(mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return m }, o)))
	t.Cleanup(s.Close)
	return s
}

// caller is an http.Client that shows a token, which may be changed.
type caller struct{ token string }

func (c *caller) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+c.token)
	return http.DefaultTransport.RoundTrip(r)
}

func connect(t *testing.T, s *server, c *caller) (*mcp.ClientSession, error) {
	t.Helper()
	client := mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil)
	session, err := client.Connect(t.Context(), &mcp.StreamableClientTransport{Endpoint: s.URL, HTTPClient: &http.Client{Transport: c}, MaxRetries: -1}, nil)
	if err == nil {
		t.Cleanup(func() { session.Close() })
	}
	return session, err
}

func call(t *testing.T, session *mcp.ClientSession, tool string) (string, error) {
	t.Helper()
	r, err := session.CallTool(t.Context(), &mcp.CallToolParams{Name: tool})
	if err != nil {
		return "", err
	}
	require.Len(t, r.Content, 1)
	return r.Content[0].(*mcp.TextContent).Text, nil
}

// modes are the two ways in which the SDK serves: with sessions, and without as MCP 2026-07-28 does.
var modes = map[string]*mcp.StreamableHTTPOptions{
	"sessions":  nil,
	"stateless": {Stateless: true, PropagateRequestCancellation: true},
}

func TestAToolSeesTheCallerOfItsRequestAndNoToken(t *testing.T) {
	t.Parallel()
	for name, o := range modes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, o)
			c := &caller{s.svc.Mint("alice", read)}
			session, err := connect(t, s, c)
			require.NoError(t, err)
			text, err := call(t, session, "who")
			require.NoError(t, err)
			assert.Equal(t, `alice notes:read ""`, text)

			// The next request of the same session comes with a token that holds more.
			c.token = s.svc.Mint("alice", read, write)
			text, err = call(t, session, "who")
			require.NoError(t, err)
			assert.Equal(t, `alice notes:read notes:write ""`, text)
			text, err = call(t, session, "delete")
			require.NoError(t, err)
			assert.Equal(t, "deleted", text)
		})
	}
}

func TestAnotherSubjectCanNotUseASession(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	c := &caller{s.svc.Mint("alice", read)}
	session, err := connect(t, s, c)
	require.NoError(t, err)
	for _, body := range []string{
		`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"who","arguments":{}}}`,
		`{"jsonrpc":"2.0","method":"notifications/initialized"}`,
	} {
		status, answer, _ := post(t, s, s.svc.Mint("mallory", read), session.ID(), body)
		assert.Equal(t, http.StatusForbidden, status, answer)
	}
	text, err := call(t, session, "who")
	require.NoError(t, err)
	assert.Contains(t, text, "alice", "the session goes on for who opened it")
}

// post sends one message and returns the status, the body and the challenge.
func post(t *testing.T, s *server, token, session, body string) (int, string, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json, text/event-stream")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if session != "" {
		r.Header.Set("Mcp-Session-Id", session)
	}
	a, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer a.Body.Close()
	text, err := io.ReadAll(a.Body)
	require.NoError(t, err)
	return a.StatusCode, string(text), a.Header.Get("WWW-Authenticate")
}

const initialize = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`

func TestChallengesNameThePlaceOfTheMetadataAndAllScopes(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	deleting := `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"delete","arguments":{}}}`
	const metadata = `resource_metadata="https://api.test/.well-known/oauth-protected-resource"`
	tests := map[string]struct {
		token, body string
		status      int
		challenge   []string
	}{
		"no token":            {"", initialize, 401, []string{metadata, `scope="notes:read"`}},
		"a bad token":         {"x", initialize, 401, []string{metadata, `error="invalid_token"`}},
		"too little at all":   {s.svc.Mint("alice"), initialize, 403, []string{metadata, `error="insufficient_scope"`, `scope="notes:read"`}},
		"too little for one":  {s.svc.Mint("alice", read), deleting, 403, []string{metadata, `error="insufficient_scope"`, `scope="notes:read notes:write"`}},
		"one of a batch":      {s.svc.Mint("alice", read), "[" + deleting + "]", 403, []string{`scope="notes:read notes:write"`}},
		"what it has is kept": {s.svc.Mint("alice", read, "mail:read"), deleting, 403, []string{`scope="mail:read notes:read notes:write"`}},
		"params that are odd": {s.svc.Mint("alice", read), `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"x","name":"delete","arguments":[]}}`, 403, []string{`scope="notes:read notes:write"`}},
	}
	for name, x := range tests {
		t.Run(name, func(t *testing.T) {
			status, text, challenge := post(t, s, x.token, "", x.body)
			assert.Equal(t, x.status, status, text)
			for _, part := range x.challenge {
				assert.Contains(t, challenge, part)
			}
		})
	}
}

func TestATokenForAnotherResourceIsRefused(t *testing.T) {
	t.Parallel()
	s := serve(t, nil, func(o *mcpauth.Options) { o.Resource = apitokentest.Audience + "/mcp" })
	status, _, challenge := post(t, s, s.svc.Mint("alice", read), "", initialize)
	assert.Equal(t, http.StatusUnauthorized, status)
	assert.Contains(t, challenge, `resource_metadata="https://api.test/.well-known/oauth-protected-resource/mcp"`)

	s = serve(t, nil, func(o *mcpauth.Options) { o.Resource = apitokentest.Audience + "/" })
	status, text, _ := post(t, s, s.svc.Mint("alice", read), "", initialize)
	assert.Equal(t, http.StatusOK, status, "a URL without a path and with / are one: %s", text)

	_, key, err := s.svc.APIKeys.Create(t.Context(), apitoken.APIKeyRequest{Subject: "alice", Scopes: apitoken.Scopes{read}})
	require.NoError(t, err)
	status, text, _ = post(t, s, key.Reveal(), "", initialize)
	assert.Equal(t, http.StatusOK, status, "an API key is for the whole service: %s", text)
}

func TestARevocationEndsACallThatLasts(t *testing.T) {
	t.Parallel()
	for name, o := range modes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, o)
			session, err := connect(t, s, &caller{s.svc.Mint("alice", read)})
			require.NoError(t, err)
			failed := make(chan error, 1)
			go func() {
				_, err := session.CallTool(t.Context(), &mcp.CallToolParams{Name: "wait"})
				failed <- err
			}()
			within(t, s.started)
			err = s.svc.Revoke(t.Context(), apitoken.BySubject("alice"), "left")
			require.NoError(t, err)
			require.ErrorIs(t, within(t, s.ended), apitoken.ErrRevoked)
			_, err = call(t, session, "who")
			require.Error(t, err)
		})
	}
}

func within[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came")
	}
	return v
}

func TestAMessageOfNobodyKnownIsRefused(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	m := mcp.NewServer(&mcp.Implementation{Name: "notes", Version: "1"}, nil)
	m.AddReceivingMiddleware(s.guard.Middleware)
	ours, theirs := mcp.NewInMemoryTransports()
	_, err := m.Connect(t.Context(), ours, nil)
	require.NoError(t, err)
	_, err = mcp.NewClient(&mcp.Implementation{Name: "test", Version: "1"}, nil).Connect(t.Context(), theirs, nil)
	assert.ErrorContains(t, err, "no caller is known")
}

func TestTheMiddlewareDecidesByItself(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	guard := mcpauth.New(svc, mcpauth.Options{Resource: apitokentest.Audience, Tools: map[string]apitoken.Scopes{"delete": {write}}})
	m := mcp.NewServer(&mcp.Implementation{Name: "notes", Version: "1"}, nil)
	m.AddReceivingMiddleware(guard.Middleware)
	mcp.AddTool(m, &mcp.Tool{Name: "delete"}, func(ctx context.Context, _ *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, any, error) {
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: apitoken.FromContext(ctx).Subject()}}}, nil, nil
	})
	// Behind the SDK's own check of tokens nothing but the Middleware knows of tools.
	h := auth.RequireBearerToken(mcpauth.Verifier(svc), &auth.RequireBearerTokenOptions{})(
		mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return m }, nil))
	s := &server{Server: httptest.NewServer(h), svc: svc}
	t.Cleanup(s.Close)

	session, err := connect(t, s, &caller{svc.Mint("alice", read)})
	require.NoError(t, err)
	_, err = call(t, session, "delete")
	require.ErrorContains(t, err, "notes:write")

	session, err = connect(t, s, &caller{svc.Mint("bob", write)})
	require.NoError(t, err)
	text, err := call(t, session, "delete")
	require.NoError(t, err)
	assert.Equal(t, "bob", text)

	_, err = connect(t, s, &caller{"x"})
	require.Error(t, err)
}

func TestWhatDescribesACallerShowsNoContext(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	token := svc.Mint("alice", read)
	info, err := mcpauth.Verifier(svc)(t.Context(), token, httptest.NewRequest("POST", "/", nil))
	require.NoError(t, err)
	assert.Equal(t, []string{"notes:read"}, info.Scopes)
	assert.NotEmpty(t, info.UserID)
	for _, verb := range []string{"%v", "%+v", "%#v"} {
		assert.NotContains(t, fmt.Sprintf(verb, info.Extra), "context")
	}
	text, err := json.Marshal(info)
	require.NoError(t, err)
	assert.NotContains(t, string(text), token)
}

func TestTheResourceNamesEveryScope(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	r := s.guard.Resource()
	assert.Equal(t, apitokentest.Audience, r.Resource)
	assert.Equal(t, apitoken.Scopes{read, write}, r.Scopes)
}

func TestOptionsThatCanNotBe(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	for name, o := range map[string]mcpauth.Options{
		"no resource":          {},
		"no URL":               {Resource: "notes"},
		"a query":              {Resource: "https://h/mcp?x=1"},
		"a tool without scope": {Resource: "https://h/mcp", Tools: map[string]apitoken.Scopes{"delete": nil}},
		"an unusable realm":    {Resource: "https://h/mcp", HTTP: httpauth.Options{Realm: "\""}},
	} {
		assert.Panics(t, func() { mcpauth.New(svc, o) }, name)
	}
}
