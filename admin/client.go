package admin

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/operate"
)

// Client calls the admin API of a service. It is safe for concurrent use. Its errors are those of the service, for errors.Is.
type Client struct {
	base  string
	http  *http.Client
	key   apitoken.Secret
	actor string
}

// Dial returns a client of the service whose socket is at path. Nothing is opened before the first call.
func Dial(path string) *Client {
	d := &net.Dialer{Timeout: 5 * time.Second}
	return &Client{base: "http://admin", http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) },
	}}}
}

// NewClient returns a client of the service at an https URL, such as https://auth.example.com/admin: the API's paths follow it.
// key is an API key or access token that holds the scope of its Options. t is how the server proves who it is; nil: by the
// system's roots. ErrInvalidRequest: the URL is not https, or the key is none.
func NewClient(url string, key apitoken.Secret, t *tls.Config) (*Client, error) {
	if !strings.HasPrefix(url, "https://") || strings.ContainsAny(url, "?#@") {
		return nil, &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "the admin API's URL must begin with https:// and have neither user nor query"}
	}
	if key.IsZero() || strings.ContainsAny(key.Reveal(), " \r\n\t") {
		return nil, &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "an API key is required, without white space"}
	}
	return &Client{base: strings.TrimSuffix(url, "/"), key: key, http: &http.Client{
		Transport: &http.Transport{TLSClientConfig: t, Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second},
		// A key must not follow a redirect to somebody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Local returns a client that calls svc in this process: for programs that opened the store themselves.
func Local(svc *apitoken.Service, o Options) *Client {
	return &Client{base: "http://admin", http: &http.Client{Transport: local{open(svc, o)}}}
}

// As returns a client that names who makes its changes, where the service has no other way to know: on a socket.
func (c *Client) As(actor string) *Client {
	d := *c
	d.actor = actor
	return &d
}

// local answers requests without a network.
type local struct{ h http.Handler }

func (l local) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		r.Body = http.NoBody
	}
	pr, pw := io.Pipe()
	w := &piped{header: http.Header{}, w: pw, begun: make(chan struct{})}
	go func() {
		defer func() {
			if p := recover(); p != nil {
				pw.CloseWithError(io.ErrUnexpectedEOF) // as a connection that ends
			}
			w.WriteHeader(http.StatusOK)
			pw.Close()
		}()
		l.h.ServeHTTP(w, r)
	}()
	<-w.begun
	return &http.Response{StatusCode: w.status, Status: http.StatusText(w.status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: w.sent, Body: pr, ContentLength: -1, Request: r}, nil
}

type piped struct {
	header, sent http.Header
	status       int
	w            *io.PipeWriter
	begun        chan struct{}
}

func (p *piped) Header() http.Header { return p.header }

func (p *piped) WriteHeader(status int) {
	if p.status == 0 {
		p.status, p.sent = status, p.header.Clone()
		close(p.begun)
	}
}

func (p *piped) Write(b []byte) (int, error) {
	p.WriteHeader(http.StatusOK)
	return p.w.Write(b)
}

// send makes one request. The caller closes the body.
func (c *Client) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		r = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, r)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "apitoken-admin")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.actor != "" {
		req.Header.Set(actorHdr, actorOf(c.actor))
	}
	if !c.key.IsZero() {
		req.Header.Set("Authorization", "Bearer "+c.key.Reveal())
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, &apitoken.Error{Code: apitoken.ErrUnavailable, Detail: "the admin API did not answer", Cause: err}
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, problem(resp)
}

// problem is the error of an answer that is no success.
func problem(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxBody)) // what did not come is not shown
	var p Problem
	if json.Unmarshal(b, &p) == nil && p.Error != "" {
		for _, x := range operate.Classes {
			if x.Name == p.Error {
				return &apitoken.Error{Code: x.Err, Detail: p.Detail, RetryAfter: time.Duration(p.RetryAfter) * time.Second}
			}
		}
	}
	for _, x := range operate.Classes { // a guard's answer, or of something in between
		if x.Status == resp.StatusCode && x.Name != "expired" && x.Name != "revoked" && x.Name != "invalid_proof" {
			return &apitoken.Error{Code: x.Err, Detail: "the admin API answered " + resp.Status}
		}
	}
	return fmt.Errorf("admin: the service answered %s: %s", resp.Status, p.Detail)
}

// call makes one operation's request.
func call[Out any](ctx context.Context, c *Client, method, path string, in any) (out Out, err error) {
	path, body, err := encode(path, in)
	if err != nil {
		return out, &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: err.Error()}
	}
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return out, &apitoken.Error{Code: apitoken.ErrUnavailable, Detail: "the answer cannot be read", Cause: err}
	}
	return out, nil
}

// Status tells how the service stands.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, "GET", "/v1/status", None{})
}

// Sessions lists live sessions, the newest first.
func (c *Client) Sessions(ctx context.Context, q SessionQuery) (Page[Session], error) {
	return call[Page[Session]](ctx, c, "GET", "/v1/sessions", q)
}

// Keys lists API keys, the newest first.
func (c *Client) Keys(ctx context.Context, q KeyQuery) (Page[Key], error) {
	return call[Page[Key]](ctx, c, "GET", "/v1/keys", q)
}

// Key returns one API key.
func (c *Client) Key(ctx context.Context, id string) (Key, error) {
	return call[Key](ctx, c, "GET", "/v1/keys/{id}", ID{id})
}

// CreateKey makes an API key.
func (c *Client) CreateKey(ctx context.Context, k NewKey) (MadeKey, error) {
	return call[MadeKey](ctx, c, "POST", "/v1/keys", k)
}

// RotateKey makes an API key's successor; the older one works for overlap longer.
func (c *Client) RotateKey(ctx context.Context, id string, overlap time.Duration) (MadeKey, error) {
	return call[MadeKey](ctx, c, "POST", "/v1/keys/{id}/rotate", Rotation{id, int64(overlap / time.Second)})
}

// EditKey changes an API key: what is set in k, and nothing else.
func (c *Client) EditKey(ctx context.Context, k KeyEdit) (Key, error) {
	return call[Key](ctx, c, "PATCH", "/v1/keys/{id}", k)
}

// RevokeKey ends an API key.
func (c *Client) RevokeKey(ctx context.Context, id, reason string) error {
	_, err := call[None](ctx, c, "POST", "/v1/keys/{id}/revoke", Ending{id, reason})
	return err
}

// Clients lists the registered clients.
func (c *Client) Clients(ctx context.Context, q PageQuery) (Page[ClientInfo], error) {
	return call[Page[ClientInfo]](ctx, c, "GET", "/v1/clients", q)
}

// Client returns one client.
func (c *Client) Client(ctx context.Context, id string) (ClientInfo, error) {
	return call[ClientInfo](ctx, c, "GET", "/v1/clients/{id}", ID{id})
}

// CreateClient registers a client.
func (c *Client) CreateClient(ctx context.Context, x ClientSpec) (MadeClient, error) {
	return call[MadeClient](ctx, c, "POST", "/v1/clients", x)
}

// RotateClient makes a client another secret; the older one works for overlap longer.
func (c *Client) RotateClient(ctx context.Context, id string, overlap time.Duration) (MadeClient, error) {
	return call[MadeClient](ctx, c, "POST", "/v1/clients/{id}/rotate", Rotation{id, int64(overlap / time.Second)})
}

// DisableClient disables a client, which ends all it holds, or lets it go on.
func (c *Client) DisableClient(ctx context.Context, id string, disabled bool) (ClientInfo, error) {
	return call[ClientInfo](ctx, c, "POST", "/v1/clients/{id}/able", Able{id, disabled})
}

// Roles lists the roles.
func (c *Client) Roles(ctx context.Context) (Page[Role], error) {
	return call[Page[Role]](ctx, c, "GET", "/v1/roles", None{})
}

// SetRole defines a role.
func (c *Client) SetRole(ctx context.Context, r Role) (Role, error) {
	return call[Role](ctx, c, "PUT", "/v1/roles/{name}", r)
}

// Revoke ends what a target names.
func (c *Client) Revoke(ctx context.Context, target apitoken.Target, reason string) error {
	_, err := call[None](ctx, c, "POST", "/v1/revoke", Revocation{target, reason})
	return err
}

// RevokeLeaked ends the credentials of the service that a text of at most 1 MiB holds, and returns how many.
func (c *Client) RevokeLeaked(ctx context.Context, text []byte, reason string) (int, error) {
	n, err := call[Ended](ctx, c, "POST", "/v1/leaked", LeakedText{string(text), reason})
	return n.Ended, err
}

// Explain says why a token is refused, or let in.
func (c *Client) Explain(ctx context.Context, q Question) (Answer, error) {
	return call[Answer](ctx, c, "POST", "/v1/explain", q)
}

// EventPage is apitoken.Service's, so that package export reads events through a Client.
func (c *Client) EventPage(ctx context.Context, q apitoken.EventQuery, cursor string, limit int) ([]apitoken.Event, string, error) {
	p, err := call[Events](ctx, c, "GET", "/v1/events", EventQuery{Subject: q.Subject, Client: q.Client, TokenID: q.TokenID, Grant: q.Grant, Issuer: q.Issuer,
		Type: string(q.Type), From: q.From, To: q.To, OldestFirst: q.OldestFirst, Cursor: cursor, Limit: limit})
	return p.Items, p.Cursor, err
}

// Event returns one audit event.
func (c *Client) Event(ctx context.Context, id string) (apitoken.Event, error) {
	return call[apitoken.Event](ctx, c, "GET", "/v1/events/{id}", ID{id})
}

// SigningKeys lists the public sides of the signing keys.
func (c *Client) SigningKeys(ctx context.Context) (Page[SigningKeyInfo], error) {
	return call[Page[SigningKeyInfo]](ctx, c, "GET", "/v1/signing-keys", None{})
}

// RotateSigningKeys brings a new signing key forward.
func (c *Client) RotateSigningKeys(ctx context.Context) error {
	_, err := call[None](ctx, c, "POST", "/v1/signing-keys/rotate", None{})
	return err
}

// RotateSecrets makes a new root secret.
func (c *Client) RotateSecrets(ctx context.Context) error {
	_, err := call[None](ctx, c, "POST", "/v1/signing-keys/rotate-secrets", None{})
	return err
}

// Rewrap seals every root secret again with the service's current key-encryption key.
func (c *Client) Rewrap(ctx context.Context) error {
	_, err := call[None](ctx, c, "POST", "/v1/signing-keys/rewrap", None{})
	return err
}

// Compromise withdraws a signing key at once, with all that it signed.
func (c *Client) Compromise(ctx context.Context, id, reason string) error {
	_, err := call[None](ctx, c, "POST", "/v1/signing-keys/{id}/compromise", Ending{id, reason})
	return err
}

// Expiring lists API keys and client secrets that end before a time, the first to end first.
func (c *Client) Expiring(ctx context.Context, before time.Time, limit int) (Page[Expiry], error) {
	return call[Page[Expiry]](ctx, c, "GET", "/v1/expiring", ExpiryQuery{before, limit})
}

// Unreadable lists stored records that cannot be read: those that the process has met, or with all every one in the store.
func (c *Client) Unreadable(ctx context.Context, all bool) (Page[Unreadable], error) {
	return call[Page[Unreadable]](ctx, c, "GET", "/v1/unreadable", UnreadableQuery{all})
}

// Remove ends a record that cannot be read. Nothing that was refused becomes good.
func (c *Client) Remove(ctx context.Context, r Unreadable) error {
	_, err := call[None](ctx, c, "POST", "/v1/unreadable/remove", r)
	return err
}

// Backup writes a consistent copy of the service's store to w. ErrNotFound: the service makes none. After an error what was
// written is no backup.
func (c *Client) Backup(ctx context.Context, w io.Writer) error {
	resp, err := c.send(ctx, "GET", "/v1/backup", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return errors.Join(&apitoken.Error{Code: apitoken.ErrUnavailable, Detail: "the backup ended early"}, err)
	}
	return nil
}
