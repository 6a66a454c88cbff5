// Package dpopclient is for programs that call APIs with access tokens that are bound to a key by DPoP (RFC 9449), of this project's
// servers or of any others.
//
//	prover, err := dpopclient.NewProver(key, nil)
//	client, err := dpopclient.New(dpopclient.Config{
//		Prover: prover, TokenURL: "https://auth.example.com/token", ClientID: "cli", APIs: []string{"https://api.example.com"}, Store: store,
//	})
//	err = client.Grant(ctx, url.Values{"grant_type": {"authorization_code"}, "code": {code}, …}) // once, after the login
//	api := &http.Client{Transport: client}
//	answer, err := api.Get("https://api.example.com/orders")
//
// A [Prover] makes proofs and follows nonces; golang.org/x/oauth2 can use it. A [Client] also has tokens: it refreshes them once
// however many requests wait, and keeps them in the host's [Store].
package dpopclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config says whose tokens a Client has, and for which APIs.
type Config struct {
	// Prover has the key to which the tokens are bound; required.
	Prover *Prover
	// TokenURL is the token endpoint; required. It is https, as the APIs are, except on this machine (localhost, 127.0.0.1).
	TokenURL string
	// ClientID is the client; required. ClientSecret is sent by HTTP Basic; empty: the client is public, or Authenticate says how
	// it proves itself.
	ClientID, ClientSecret string
	// Authenticate adds to the form of each token request, such as a client_assertion (RFC 7523) or a resource (RFC 8707). nil:
	// nothing is added.
	Authenticate func(ctx context.Context, form url.Values) error
	// APIs are the origins that get the token: scheme, host and port, such as https://api.example.com; at least one. A request to
	// another one, as after a redirect, is sent as it is, without the token and without a proof.
	APIs []string
	// Machine is the grant of a program that has no refresh token and gets new tokens by itself, such as
	// {"grant_type": {"client_credentials"}, "scope": {"orders:read"}}. nil: without a refresh token it is ErrSignIn.
	Machine url.Values
	// Store keeps the tokens. nil: they are kept in memory, and end with the process.
	Store Store
}

// Store keeps the tokens of one session, where nobody else reads them. A Client calls one method at a time. Several processes may
// share a Store: before a Client refreshes it looks for tokens that another one has saved.
type Store interface {
	// Load returns what was saved last, the zero Tokens if nothing was.
	Load(ctx context.Context) (Tokens, error)
	// Save replaces what was saved. It returns once that outlasts a crash: the refresh token before may be spent.
	Save(ctx context.Context, t Tokens) error
}

// Tokens are what a Store keeps. Their JSON has the tokens in clear; fmt and log/slog show nothing of them.
type Tokens struct {
	Access  string `json:"access,omitempty"`
	Refresh string `json:"refresh,omitempty"`
	// Renew is when Access is to be replaced: before it ends, by a tenth of its life and at most 30 s. Zero: the server did not
	// say; it is replaced once a server refuses it.
	Renew time.Time `json:"renew,omitzero"`
}

// Format keeps the tokens out of logs.
func (t Tokens) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[redacted]") }

// LogValue implements [slog.LogValuer].
func (t Tokens) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// ErrSignIn is in the error of a request for which there are no tokens, and none can be had: nobody has signed in, or the session
// is over. The user signs in again, and then comes [Client.Grant].
var ErrSignIn = errors.New("dpopclient: the user has to sign in")

// Error is what a token endpoint answered.
type Error struct {
	Status      int    // of HTTP
	Code        string // such as invalid_grant (RFC 6749 §5.2); empty: the answer had none
	Description string // the server's own words, for developers; not to be believed
}

func (e *Error) Error() string {
	s := fmt.Sprintf("dpopclient: the token endpoint answered %d", e.Status)
	if e.Code != "" {
		s += fmt.Sprintf(" %.64q", e.Code)
	}
	if e.Description != "" {
		s += fmt.Sprintf(": %.256q", e.Description)
	}
	return s
}

// Is makes a session that is over ErrSignIn.
func (e *Error) Is(target error) bool { return target == ErrSignIn && e.Code == "invalid_grant" }

// Client is an [http.RoundTripper] that sends requests with its access token. Make it with New. Its methods may be called from
// several goroutines.
type Client struct {
	c    Config
	apis []string // as origin names them
	http *http.Client
	turn chan struct{} // holds one while tokens are asked for, saved or loaded

	mu      sync.Mutex // guards what follows; nothing is called under it
	tokens  Tokens
	refused string // an access token that a server took no more
	unsaved bool   // the Store does not have tokens yet
	over    *Error // the answer to tokens.Refresh, which ended the session
	renewal *renewal
}

// renewal is a refresh under way, for which requests wait.
type renewal struct {
	done chan struct{} // closed when err is there
	err  error
}

// renewTimeout bounds a refresh, loading and saving included.
const renewTimeout = 30 * time.Second

// New returns a Client, whose Store is read at its first request. The error says what is wrong with the Config.
func New(c Config) (*Client, error) {
	switch {
	case c.Prover == nil:
		return nil, errors.New("dpopclient: Config.Prover is required")
	case c.ClientID == "":
		return nil, errors.New("dpopclient: Config.ClientID is required")
	case len(c.APIs) == 0:
		return nil, errors.New("dpopclient: Config.APIs is empty: no request would get the token")
	}
	if _, err := secure(c.TokenURL); err != nil {
		return nil, fmt.Errorf("dpopclient: Config.TokenURL: %w", err)
	}
	x := &Client{c: c, turn: make(chan struct{}, 1)}
	x.c.Machine = maps.Clone(c.Machine)
	for _, api := range c.APIs {
		u, err := secure(api)
		if err == nil && (strings.Trim(u.Path, "/") != "" || u.RawQuery != "") {
			err = errors.New("an origin has no path and no query")
		}
		if err != nil {
			return nil, fmt.Errorf("dpopclient: Config.APIs: %w", err)
		}
		x.apis = append(x.apis, origin(u))
	}
	if x.c.Store == nil {
		x.c.Store = &memory{}
	}
	// A redirected token request would show the code or the refresh token to somebody else.
	x.http = &http.Client{Transport: c.Prover, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return x, nil
}

// secure reads a URL to which tokens may be sent.
func secure(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, fmt.Errorf("%q is no URL such as https://api.example.com", text)
	}
	ip, _ := netip.ParseAddr(u.Hostname())
	if u.Scheme != "https" && !(u.Scheme == "http" && (ip.IsLoopback() || u.Hostname() == "localhost")) {
		return nil, fmt.Errorf("%q is not https", text)
	}
	return u, nil
}

// memory is a Store that ends with the process.
type memory struct{ t Tokens }

func (m *memory) Load(context.Context) (Tokens, error) { return m.t, nil }

func (m *memory) Save(_ context.Context, t Tokens) error {
	m.t = t
	return nil
}

// RoundTrip implements [http.RoundTripper]. It waits for new tokens where they are needed; a request that is refused with
// invalid_token is sent once more with new ones, if its body can be had again. Errors: ErrSignIn, an *Error, and those of the
// Store and of the transport.
func (c *Client) RoundTrip(r *http.Request) (*http.Response, error) {
	if !slices.Contains(c.apis, origin(r.URL)) {
		return c.c.Prover.base.RoundTrip(r)
	}
	token, err := c.token(r.Context())
	if err != nil {
		closeBody(r)
		return nil, err
	}
	answer, err := c.send(r, r.Body, token)
	if err != nil || answer.StatusCode != http.StatusUnauthorized || !says(answer, "invalid_token") {
		return answer, err
	}
	c.mu.Lock()
	if c.tokens.Access == token { // else it was replaced meanwhile
		c.refused = token
	}
	c.mu.Unlock()
	body := r.Body
	if r.Body != nil && r.Body != http.NoBody {
		if r.GetBody == nil {
			return answer, nil
		}
		if body, err = r.GetBody(); err != nil {
			return answer, nil
		}
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, maxAnswer))
	_ = answer.Body.Close()
	if token, err = c.token(r.Context()); err != nil {
		if body != nil {
			_ = body.Close()
		}
		return nil, err
	}
	return c.send(r, body, token)
}

func (c *Client) send(r *http.Request, body io.ReadCloser, token string) (*http.Response, error) {
	r = clone(r)
	r.Body = body
	r.Header.Set("Authorization", "DPoP "+token)
	return c.c.Prover.RoundTrip(r)
}

func says(answer *http.Response, code string) bool {
	for _, challenge := range answer.Header["Www-Authenticate"] {
		if strings.Contains(challenge, `error="`+code+`"`) || strings.Contains(challenge, "error="+code) {
			return true
		}
	}
	return false
}

// token is an access token that can be sent. Whoever comes while it is renewed waits for that renewal.
func (c *Client) token(ctx context.Context) (string, error) {
	for {
		c.mu.Lock()
		if c.usable(c.tokens) && !c.unsaved {
			token := c.tokens.Access
			c.mu.Unlock()
			return token, nil
		}
		w := c.renewal
		if w == nil {
			w = &renewal{done: make(chan struct{})}
			c.renewal = w
			// The request that began it may end: the others, and the next ones, still want the answer.
			go c.renew(context.WithoutCancel(ctx), w)
		}
		c.mu.Unlock()
		select {
		case <-w.done:
		case <-ctx.Done():
			return "", ctx.Err()
		}
		if w.err != nil {
			return "", w.err
		}
	}
}

// usable reports whether t can be sent. mu is held.
func (c *Client) usable(t Tokens) bool {
	return t.Access != "" && t.Access != c.refused && (t.Renew.IsZero() || time.Now().Before(t.Renew))
}

// renew ends w.
func (c *Client) renew(ctx context.Context, w *renewal) {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil { // of the Store or of Authenticate: not in the goroutine of any request
			w.err = fmt.Errorf("dpopclient: a function of the host's panicked: %v", p)
		}
		c.mu.Lock()
		c.renewal = nil
		c.mu.Unlock()
		close(w.done)
	}()
	w.err = c.inTurn(ctx, c.refresh)
}

// inTurn runs f while nobody else asks for tokens.
func (c *Client) inTurn(ctx context.Context, f func(context.Context) error) error {
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.turn }()
	return f(ctx)
}

// refresh makes c.tokens usable, or says why it can't.
func (c *Client) refresh(ctx context.Context) error {
	c.mu.Lock()
	have, unsaved := c.tokens, c.unsaved
	c.mu.Unlock()
	if unsaved { // first of all: the refresh token that the Store has is spent
		if err := c.save(ctx, have); err != nil {
			return err
		}
	} else if err := c.load(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	have, over, ready := c.tokens, c.over, c.usable(c.tokens)
	c.mu.Unlock()
	switch {
	case ready: // it was saved only now, or another process has renewed it
		return nil
	case over != nil:
		return over
	case have.Refresh != "":
		return c.ask(ctx, refreshing(have.Refresh), have.Refresh)
	case c.c.Machine != nil:
		return c.ask(ctx, c.c.Machine, "")
	}
	return ErrSignIn
}

// load takes what the Store has, if that is not what c has.
func (c *Client) load(ctx context.Context) error {
	stored, err := c.c.Store.Load(ctx)
	if err != nil {
		return fmt.Errorf("dpopclient: Store.Load: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if stored.Refresh != c.tokens.Refresh {
		c.over = nil
	}
	c.tokens = stored
	return nil
}

// save writes t, which c.tokens is.
func (c *Client) save(ctx context.Context, t Tokens) error {
	if err := c.c.Store.Save(ctx, t); err != nil {
		return fmt.Errorf("dpopclient: Store.Save: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unsaved = false
	return nil
}

// Grant gets the first tokens of a session by a grant of the token endpoint, such as {"grant_type": {"authorization_code"}, …}, and
// saves them in the place of others. form is completed by the client's authentication and not changed. Errors: an *Error, those
// of the Store and of the transport.
func (c *Client) Grant(ctx context.Context, form url.Values) error {
	return c.inTurn(ctx, func(ctx context.Context) error { return c.ask(ctx, form, "") })
}

// ask sends a token request, and takes and saves what comes. refresh is the refresh token that the form has; it stays where no new
// one comes (RFC 6749 §6).
func (c *Client) ask(ctx context.Context, form url.Values, refresh string) error {
	began := time.Now()
	t, life, err := c.request(ctx, form)
	var answered *Error
	if errors.As(err, &answered) && refresh != "" && errors.Is(err, ErrSignIn) {
		return c.spent(ctx, answered, refresh)
	}
	if err != nil {
		return err
	}
	if t.Refresh == "" {
		t.Refresh = refresh
	}
	if life > 0 {
		t.Renew = began.Add(life - min(life/10, 30*time.Second))
	}
	c.mu.Lock()
	c.tokens, c.unsaved, c.refused, c.over = t, true, "", nil
	c.mu.Unlock()
	return c.save(ctx, t)
}

// spent deals with a refresh token that is good no more. If another process has saved others meanwhile it was first, and
// nothing is lost.
func (c *Client) spent(ctx context.Context, answered *Error, refresh string) error {
	if err := c.load(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	have, ready := c.tokens, c.usable(c.tokens)
	if have.Refresh == refresh {
		c.over = answered // later requests need not ask again
	}
	c.mu.Unlock()
	switch {
	case ready:
		return nil
	case have.Refresh == refresh || have.Refresh == "":
		return answered
	}
	return c.ask(ctx, refreshing(have.Refresh), have.Refresh)
}

func refreshing(token string) url.Values {
	return url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}}
}

// request sends one token request (RFC 6749 §4 to §6).
func (c *Client) request(ctx context.Context, form url.Values) (t Tokens, life time.Duration, err error) {
	sent := url.Values{}
	for name, values := range form {
		sent[name] = slices.Clone(values)
	}
	if c.c.ClientSecret == "" {
		sent.Set("client_id", c.c.ClientID)
	}
	if c.c.Authenticate != nil {
		if err := c.c.Authenticate(ctx, sent); err != nil {
			return t, 0, fmt.Errorf("dpopclient: Config.Authenticate: %w", err)
		}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.c.TokenURL, strings.NewReader(sent.Encode()))
	if err != nil {
		return t, 0, err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Accept", "application/json")
	if c.c.ClientSecret != "" { // each form-encoded by itself (RFC 6749 §2.3.1)
		r.SetBasicAuth(url.QueryEscape(c.c.ClientID), url.QueryEscape(c.c.ClientSecret))
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return t, 0, fmt.Errorf("dpopclient: the token endpoint: %w", err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return t, 0, fmt.Errorf("dpopclient: the token endpoint: %w", err)
	}
	if answer.StatusCode != http.StatusOK {
		var said struct {
			Error       string `json:"error"`
			Description string `json:"error_description"`
		}
		_ = json.Unmarshal(body, &said) // what is no JSON says nothing
		return t, 0, &Error{Status: answer.StatusCode, Code: said.Error, Description: said.Description}
	}
	var said struct {
		Access  string  `json:"access_token"`
		Type    string  `json:"token_type"`
		Expires float64 `json:"expires_in"`
		Refresh string  `json:"refresh_token"`
	}
	if err := json.Unmarshal(body, &said); err != nil {
		return t, 0, errors.New("dpopclient: the token endpoint answered no JSON that can be read") // the cause would show the tokens
	}
	switch {
	case said.Access == "":
		return t, 0, errors.New("dpopclient: the token endpoint answered no access token")
	case !strings.EqualFold(said.Type, "DPoP"): // RFC 9449 §5: it would be bound to nothing
		return t, 0, fmt.Errorf("dpopclient: the token endpoint answered a token of type %.32q, not DPoP", said.Type)
	}
	life = time.Duration(min(max(said.Expires, 0), maxLife.Seconds()) * float64(time.Second))
	return Tokens{Access: said.Access, Refresh: said.Refresh}, life, nil
}

// maxLife is the longest that an access token is believed to live.
const maxLife = 10 * 365 * 24 * time.Hour
