// Package mcpauth guards MCP servers that are made with github.com/modelcontextprotocol/go-sdk.
//
//	guard := mcpauth.New(svc, mcpauth.Options{
//		Resource: "https://api.example.com/mcp",
//		Tools:    map[string]apitoken.Scopes{"delete_note": {"notes:write"}},
//	})
//	server.AddReceivingMiddleware(guard.Middleware)
//	mux.Handle("/mcp", guard.Handler(mcp.NewStreamableHTTPHandler(…)))
//
// The Handler decides about each HTTP request, so that clients get the challenges of the MCP authorization specification:
// 401 with the place of the resource's metadata, and 403 with all the scopes that a tool needs. The Middleware decides again about
// each message, and gives the tool a context in which [apitoken.FromContext] is the caller of this very request. Use both: the
// SDK runs tools under the context of whoever opened the session, and it is the Middleware that mends this.
package mcpauth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/oauthhttp"
	"github.com/modelcontextprotocol/go-sdk/auth"
	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// Options say what is guarded.
type Options struct {
	// Resource is the URL of the MCP endpoint as clients see it; required. Tokens must name it in aud (RFC 8707): one that was made
	// for another service of the same issuer is refused. A path "/" and none are the same.
	Resource string
	// Name is shown to people, in the resource's metadata. Empty: none.
	Name string
	// Issuers are the authorization servers whose tokens are good here, for the metadata. Empty: the one that serves them.
	Issuers []string
	// Needs is what every request needs, the first one of a client included. Empty: any valid token.
	Needs apitoken.Scopes
	// Tools names what a call of each tool needs beside Needs. A tool that is not named needs nothing more.
	Tools map[string]apitoken.Scopes
	// HTTP is passed on to [httpauth.New]. Metadata is set by New, and StripCredential is always on: tools never see a token.
	HTTP httpauth.Options
}

// Guard guards one MCP endpoint. Make it with New. Its methods may be called from several goroutines.
type Guard struct {
	o    Options
	auth *httpauth.Auth
}

// New returns a Guard that asks v. It panics on Options that cannot be, as httpauth.New does: a server cannot go on without.
func New(v apitoken.Validator, o Options) *Guard {
	u, err := url.Parse(o.Resource)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.Fragment != "" || u.RawQuery != "" || u.User != nil {
		panic(fmt.Sprintf("mcpauth: Options.Resource %q is no http URL without query and fragment", o.Resource))
	}
	for tool, needs := range o.Tools {
		if tool == "" || len(needs) == 0 {
			panic(fmt.Sprintf("mcpauth: Options.Tools names the tool %q without a scope", tool))
		}
	}
	o.HTTP.Metadata = oauthhttp.ResourceMetadataURL(o.Resource)
	o.HTTP.StripCredential = true
	return &Guard{o: o, auth: httpauth.New(resourceValidator{v, o.Resource}, &o.HTTP)}
}

// Resource describes the endpoint for clients that know only its URL (RFC 9728): give it to [oauthhttp.Options], or where
// another process issues the tokens, to [oauthhttp.ResourceMetadata].
func (g *Guard) Resource() oauthhttp.Resource {
	all := slices.Clone(g.o.Needs)
	for _, needs := range g.o.Tools {
		all = union(all, needs)
	}
	slices.Sort(all)
	return oauthhttp.Resource{Resource: g.o.Resource, Name: g.o.Name, Issuers: g.o.Issuers, Scopes: all}
}

// Handler guards an mcp.StreamableHTTPHandler. A request that is let through is bound to its caller: the SDK refuses a session
// that another principal has opened, by any client. What lasts, such as an event stream, ends within a second of the token's
// revocation or expiry. The older SSE transport of the SDK does not say whose request a message came with; do not put it here: the
// Middleware refuses all its messages.
func (g *Guard) Handler(next http.Handler) http.Handler {
	if next == nil {
		panic("mcpauth: Handler without a handler behind it")
	}
	known := auth.RequireBearerToken(tokenInfo, &auth.RequireBearerTokenOptions{AllowMissingExpiration: true})(
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Authorization") // this request's own copy, which holds no token
			next.ServeHTTP(w, r)
		}))
	return g.auth.Guard(requirement(g.o.Needs))(g.auth.Watch(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := g.admit(r); err != nil {
			g.auth.Error(w, r, err)
			return
		}
		// The SDK wants to have read a header of its own. What it is to know comes by the context.
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer checked")
		known.ServeHTTP(w, r)
	})))
}

// admit refuses calls of tools for which the caller lacks a scope, while there is still an HTTP status to say so by.
func (g *Guard) admit(r *http.Request) error {
	if len(g.o.Tools) == 0 || r.Method != http.MethodPost {
		return nil
	}
	var head bytes.Buffer
	n, err := io.Copy(&head, io.LimitReader(r.Body, mcp.DefaultMaxRequestBodyBytes+1))
	if err != nil {
		return &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "the body could not be read", Cause: err}
	}
	body := r.Body
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head.Bytes()), body), body}
	if n > mcp.DefaultMaxRequestBodyBytes {
		return nil // the SDK refuses it, or the Middleware decides
	}
	return g.allow(r.Context(), calledTools(head.Bytes())...)
}

// allow is nil where the caller in ctx may call all the tools. Its error names all that a client has to ask for: also what it
// has already, which it would lose otherwise (step-up authorization).
func (g *Guard) allow(ctx context.Context, tools ...string) error {
	caller := apitoken.FromContext(ctx)
	needs := g.o.Needs
	for _, tool := range tools {
		needs = union(needs, g.o.Tools[tool])
	}
	if caller.Check(requirement(needs)) == nil {
		return nil
	}
	// Authorize tells the service's observers of the refusal.
	_, err := apitoken.Authorize(ctx, verified{caller}, apitoken.Bearer("verified"), requirement(union(needs, caller.Scopes())))
	return err
}

// Middleware gives each message the context of the request that it came with: the caller for [apitoken.FromContext], the
// origin for the audit trail, and whatever the host's own middleware has put there. It refuses calls of tools for which the
// caller lacks a scope, and every message of a transport that does not say whose it is.
//
// The context ends when the caller's token is revoked or expires while the request lasts.
func (g *Guard) Middleware(next mcp.MethodHandler) mcp.MethodHandler {
	return func(ctx context.Context, method string, req mcp.Request) (mcp.Result, error) {
		from, ok := requestOf(req)
		if !ok {
			return nil, refuse("no caller is known for this message")
		}
		if p, ok := req.GetParams().(*mcp.CallToolParamsRaw); ok {
			if err := g.allow(from, p.Name); err != nil {
				return nil, refuse("the tool needs the scopes " + union(g.o.Needs, g.o.Tools[p.Name]).String())
			}
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(context.Canceled)
		stop := context.AfterFunc(from, func() {
			// A client that has gone may come back for its answer; one whose token has ended may not.
			if err := context.Cause(from); errors.Is(err, apitoken.ErrInvalidToken) {
				cancel(err)
			}
		})
		defer stop()
		return next(messageContext{ctx, from}, method, req)
	}
}

// Verifier is for hosts that use [auth.RequireBearerToken] of the SDK in place of [Guard.Handler]: it takes tokens of any
// audience that v takes, no DPoP proofs, and gives no challenge that names a tool's scopes. Guard.Middleware works with it.
func Verifier(v apitoken.Validator) auth.TokenVerifier {
	return func(ctx context.Context, token string, r *http.Request) (*auth.TokenInfo, error) {
		ctx, err := apitoken.Authorize(ctx, v, apitoken.Bearer(token), apitoken.Authenticated())
		switch {
		case errors.Is(err, apitoken.ErrInvalidToken):
			return nil, auth.ErrInvalidToken
		case err != nil:
			return nil, errors.New("the token cannot be checked now") // its text is sent to the caller
		}
		return tokenInfo(ctx, token, r)
	}
}

// callerKey is where TokenInfo.Extra holds the context of its request.
const callerKey = "github.com/apitoken-go/apitoken/mcpauth"

// carried is a context in a place that is made to be printed: it shows nothing.
type carried struct{ ctx context.Context }

func (carried) String() string               { return "a request" }
func (carried) GoString() string             { return "a request" }
func (carried) MarshalText() ([]byte, error) { return []byte("a request"), nil }

// tokenInfo describes the caller in ctx to the SDK, which binds a session to UserID.
func tokenInfo(ctx context.Context, _ string, _ *http.Request) (*auth.TokenInfo, error) {
	t := apitoken.FromContext(ctx)
	if t.IsZero() {
		return nil, auth.ErrInvalidToken
	}
	info := &auth.TokenInfo{UserID: fmt.Sprintf("%q %q %q", t.Issuer(), t.Subject(), t.Client()), Expiration: t.ExpiresAt(), Extra: map[string]any{callerKey: carried{ctx}}}
	for _, s := range t.Scopes() {
		info.Scopes = append(info.Scopes, string(s))
	}
	return info, nil
}

// requestOf is the context of the HTTP request that brought req.
func requestOf(req mcp.Request) (context.Context, bool) {
	extra := req.GetExtra()
	if extra == nil || extra.TokenInfo == nil {
		return nil, false
	}
	c, ok := extra.TokenInfo.Extra[callerKey].(carried)
	return c.ctx, ok
}

// messageContext ends as the message does and holds what its request held. What the SDK puts into a session's context is found
// behind it.
type messageContext struct {
	context.Context
	from context.Context
}

func (c messageContext) Value(key any) any {
	if v := c.from.Value(key); v != nil {
		return v
	}
	return c.Context.Value(key)
}

// resourceValidator refuses tokens that are for other resources.
type resourceValidator struct {
	apitoken.Validator
	resource string
}

func (v resourceValidator) Validate(ctx context.Context, c apitoken.Credential) (apitoken.Token, error) {
	t, err := v.Validator.Validate(ctx, c)
	if err != nil || t.IsAPIKey() { // an API key is for the whole service
		return t, err
	}
	for _, a := range t.Audiences() {
		if text.SameResource(a, v.resource) {
			return t, nil
		}
	}
	return apitoken.Token{}, &apitoken.Error{Code: apitoken.ErrInvalidToken, Detail: "the token is for another resource"}
}

// Recheck keeps httpauth's Watch asking the validator behind.
func (v resourceValidator) Recheck(ctx context.Context, t apitoken.Token) error {
	return t.Recheck(ctx)
}

// verified answers with a token that was validated already.
type verified struct{ token apitoken.Token }

func (v verified) Validate(context.Context, apitoken.Credential) (apitoken.Token, error) {
	return v.token, nil
}

func requirement(needs apitoken.Scopes) apitoken.Requirement {
	if len(needs) == 0 {
		return apitoken.Authenticated()
	}
	return apitoken.AllOf(needs[0], needs[1:]...)
}

func refuse(message string) error {
	return &jsonrpc.Error{Code: jsonrpc.CodeInvalidRequest, Message: message}
}

// calledTools are the tools that a body's messages call. Of what is malformed it finds none: the SDK refuses that.
func calledTools(body []byte) []string {
	type message struct {
		Method string
		Params struct{ Name string }
	}
	body = bytes.TrimSpace(body)
	var batch []message
	if len(body) > 0 && body[0] == '[' {
		_ = json.Unmarshal(body, &batch)
	} else {
		batch = make([]message, 1)
		_ = json.Unmarshal(body, &batch[0])
	}
	var tools []string
	for _, m := range batch {
		if m.Method == "tools/call" {
			tools = append(tools, m.Params.Name)
		}
	}
	return tools
}

// union is a's scopes and those of b that a lacks.
func union(a, b apitoken.Scopes) apitoken.Scopes {
	out := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
