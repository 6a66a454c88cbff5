package remote

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/bodytime"
	"github.com/apitoken-go/apitoken/internal/peercert"
	"github.com/apitoken-go/apitoken/store"
)

// Paths below the issuer's own, except the metadata's, which RFC 8414 §3.1 fixes.
const (
	wellKnown      = "/.well-known/oauth-authorization-server"
	jwksPath       = "/.well-known/jwks.json"
	feedPath       = "/apitoken/revocations"
	introspectPath = "/apitoken/introspect"
)

// Option changes how Handler, Feed and Introspect know who asks.
type Option func(*callers)

// ClientCertificates says which certificate the client of a request showed, nil if none, and whether its chain was verified, in
// place of the connection's own. For a service whose TLS ends at a proxy: see oauthhttp.CertificateBehindProxies.
func ClientCertificates(of func(*http.Request) (cert *x509.Certificate, verified bool)) Option {
	return func(c *callers) {
		if of != nil {
			c.certificate = of
		}
	}
}

// ClientCAs name the clients of tls_client_auth where the TLS listener asks for certificates without verifying them, as it
// must (tls.RequestClientCert) for self-signed ones. Without it only what the listener has verified counts.
func ClientCAs(pool *x509.CertPool) Option { return func(c *callers) { c.cas = pool } }

// callers confirms who asks.
type callers struct {
	svc         *apitoken.Service
	certificate func(*http.Request) (*x509.Certificate, bool)
	cas         *x509.CertPool
}

func newCallers(svc *apitoken.Service, options []Option) *callers {
	c := &callers{svc: svc}
	c.certificate = func(r *http.Request) (*x509.Certificate, bool) { return peercert.Of(r, c.cas, time.Now()) }
	for _, o := range options {
		o(c)
	}
	return c
}

// Handler serves metadata and JWKS to all, the feed and introspection to clients that hold FollowScope. It answers at the
// paths that the issuer's URL implies; mount it at the root of the issuer's host, or at those paths. oauthhttp serves
// richer metadata and the same feed: one of the two is enough.
//
// A client proves who it is by HTTP Basic, by an access token of its own, or by the certificate of its TLS connection
// (RFC 8705 §2) with its client_id: in the feed's query, in the form of an introspection. The server must then ask for
// certificates: tls.Config.ClientAuth is VerifyClientCertIfGiven with ClientCAs for clients of tls_client_auth, and
// RequestClientCert for those of self_signed_tls_client_auth, or for both with the option [ClientCAs].
func Handler(svc *apitoken.Service, options ...Option) http.Handler {
	base := strings.TrimSuffix(svc.Issuer(), "/")
	path := pathOf(base)
	mux := http.NewServeMux()
	mux.Handle("GET "+wellKnown+path, metadataHandler(svc.Issuer(), base))
	mux.Handle("GET "+path+jwksPath, JWKS(svc))
	mux.Handle("GET "+path+feedPath, Feed(svc, options...))
	mux.Handle("POST "+path+introspectPath, Introspect(svc, options...))
	return bodytime.Front(bodytime.Default, mux)
}

// FeedURL is where Handler serves an issuer's feed: the metadata's apitoken_revocations_endpoint.
func FeedURL(issuer string) string { return strings.TrimSuffix(issuer, "/") + feedPath }

func pathOf(issuer string) string {
	u, err := url.Parse(issuer)
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(u.EscapedPath(), "/")
}

func metadataHandler(issuer, base string) http.Handler {
	// response_types_supported is required by RFC 8414 §2; this handler has no authorization endpoint.
	doc, err := json.Marshal(map[string]any{
		"issuer": issuer, "jwks_uri": base + jwksPath, "introspection_endpoint": base + introspectPath,
		"apitoken_revocations_endpoint": base + feedPath, "response_types_supported": []string{},
		"introspection_endpoint_auth_methods_supported": []string{"client_secret_basic", "tls_client_auth", "self_signed_tls_client_auth"},
		"tls_client_certificate_bound_access_tokens":    true,
	})
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err != nil {
			http.Error(w, "no metadata", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "public, max-age=300")
		write(w, doc)
	})
}

// JWKS serves the published keys (RFC 7517) with an ETag, for a minute in caches: a next key is published for much longer
// before it signs.
func JWKS(svc *apitoken.Service) http.Handler {
	return bodytime.Front(bodytime.Default, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		doc, err := svc.SigningKeys.JWKS(r.Context(), "")
		if err != nil {
			unavailable(w)
			return
		}
		sum := sha256.Sum256(doc)
		etag := `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`
		h := w.Header()
		h.Set("Content-Type", "application/jwk-set+json")
		h.Set("Cache-Control", "public, max-age=60, must-revalidate")
		h.Set("ETag", etag)
		h.Set("Access-Control-Allow-Origin", "*") // public, and wanted by clients in browsers
		h.Set("X-Content-Type-Options", "nosniff")
		if matches(r.Header.Get("If-None-Match"), etag) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		write(w, doc)
	}))
}

// matches is If-None-Match of RFC 9110 §13.1.2, by weak comparison.
func matches(header, etag string) bool {
	for part := range strings.SplitSeq(header, ",") {
		part = strings.TrimPrefix(strings.TrimSpace(part), "W/")
		if part == etag || part == "*" {
			return true
		}
	}
	return false
}

// Feed serves the rules behind a position, from memory, to clients that hold FollowScope. With wait (milliseconds) it
// answers when there is news, or after so long; the caller's right is checked again then, and his certificate too. With fresh (milliseconds) it looks at
// the store where its own view is older than that, once for all who ask: a caller's bound may be tighter than the issuer's.
func Feed(svc *apitoken.Service, options ...Option) http.Handler {
	callers := newCallers(svc, options)
	return bodytime.Front(bodytime.Default, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		q := r.URL.Query()
		named := func() (url.Values, error) { return q, nil }
		if !callers.allowed(w, r, named) {
			return
		}
		after, ok := parsePosition(q.Get("after"))
		nonce := q.Get("nonce")
		limit, err1 := number(q.Get("max"), 1000)
		wait, err2 := number(q.Get("wait"), 0)
		fresh, err3 := number(q.Get("fresh"), 1000)
		if !ok || len(nonce) > 128 || nonce == "" || err1 != nil || err2 != nil || err3 != nil {
			http.Error(w, "after, nonce, max, wait or fresh is missing or malformed", http.StatusBadRequest)
			return
		}
		if wait > 0 && after != (store.Position{}) {
			d := min(time.Duration(wait)*time.Millisecond, maxWait)
			// Whoever serves us may have a write timeout that is shorter than a long poll.
			if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(d + requestTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
				unavailable(w)
				return
			}
			ctx, cancel := context.WithTimeout(r.Context(), d)
			err := svc.Adapter().Wait(ctx, after)
			over := ctx.Err() != nil
			cancel()
			switch {
			case r.Context().Err() != nil:
				return
			case err != nil && !over: // the service is closed
				unavailable(w)
				return
			case !callers.allowed(w, r, named):
				return
			}
		}
		if svc.Freshness().Age > time.Duration(fresh)*time.Millisecond {
			ctx, cancel := context.WithTimeout(r.Context(), syncTimeout)
			_ = svc.Sync(ctx) // if it fails the answer says how old it is
			cancel()
		}
		v, err := svc.Revocations(r.Context(), after, limit)
		switch {
		case errors.Is(err, store.ErrDiverged):
			http.Error(w, "another history", http.StatusConflict)
			return
		case err != nil:
			unavailable(w)
			return
		}
		body, err := encodeView(&v, nonce, after)
		if err != nil {
			unavailable(w)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		write(w, body)
	}))
}

func number(s string, without int) (int, error) {
	if s == "" {
		return without, nil
	}
	n, err := strconv.Atoi(s)
	if err == nil && (n < 0 || n > math.MaxInt32) {
		err = strconv.ErrRange
	}
	return n, err
}

// Introspect answers about tokens (RFC 7662) to clients that hold FollowScope, with what this package's validators
// need besides.
func Introspect(svc *apitoken.Service, options ...Option) http.Handler {
	callers := newCallers(svc, options)
	return bodytime.Front(bodytime.Default, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		r.Body = http.MaxBytesReader(w, r.Body, 96<<10)
		form := func() (url.Values, error) {
			err := r.ParseForm()
			return r.PostForm, err
		}
		if !callers.allowed(w, r, form) {
			return
		}
		if f, err := form(); err != nil || len(f["token"]) != 1 {
			http.Error(w, "exactly one token", http.StatusBadRequest)
			return
		}
		x, err := svc.Adapter().Introspect(r.Context(), r.PostForm.Get("token"))
		if err != nil {
			unavailable(w)
			return
		}
		body, err := encodeIntrospection(x)
		if err != nil {
			unavailable(w)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		write(w, body)
	}))
}

// allowed confirms a client that holds FollowScope, by exactly one method, and answers for the others. params are where
// a client that shows a certificate names itself; they are read only where there is one.
func (c *callers) allowed(w http.ResponseWriter, r *http.Request, params func() (url.Values, error)) bool {
	ctx := r.Context()
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		ctx = apitoken.WithOrigin(ctx, apitoken.Origin{Address: peer.Addr().Unmap(), UserAgent: r.UserAgent()})
	}
	cert, verified := c.certificate(r)
	headers := r.Header.Values("Authorization")
	switch {
	case len(headers) == 0 && cert != nil:
		p, err := params()
		if err != nil || len(p["client_id"]) > 1 || p.Has("client_secret") || p.Has("client_assertion") {
			http.Error(w, "one client_id, and nothing else beside the certificate", http.StatusBadRequest)
			return false
		}
		if p.Get("client_id") == "" { // required by RFC 8705 §2
			challenge(w, http.StatusUnauthorized)
			return false
		}
		return c.confirmed(ctx, w, apitoken.ClientAuth{ID: p.Get("client_id"), Certificate: cert, CertificateVerified: verified})
	case len(headers) != 1:
		challenge(w, http.StatusUnauthorized)
		return false
	}
	if id, secret, ok := basicOf(headers[0]); ok {
		id, err1 := url.QueryUnescape(id)
		secret, err2 := url.QueryUnescape(secret)
		if err1 != nil || err2 != nil || secret == "" {
			challenge(w, http.StatusUnauthorized)
			return false
		}
		return c.confirmed(ctx, w, apitoken.ClientAuth{ID: id, Secret: apitoken.NewSecret(secret)})
	}
	scheme, token, _ := strings.Cut(headers[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		challenge(w, http.StatusUnauthorized)
		return false
	}
	bearer := apitoken.Bearer(token)
	if cert != nil { // for tokens that are bound to it (RFC 8705 §3)
		bearer.CertSHA256 = sha256.Sum256(cert.Raw)
	}
	t, err := c.svc.Validate(ctx, bearer)
	switch {
	case errors.Is(err, apitoken.ErrUnavailable):
		unavailable(w)
	case err != nil:
		challenge(w, http.StatusUnauthorized)
	case !t.IsClient() || !t.Allows(FollowScope):
		c.svc.Adapter().Refused(apitoken.NewContext(ctx, t), apitoken.ClientAuth{}, "follow", "not a client's own token with the scope "+string(FollowScope))
		challenge(w, http.StatusForbidden)
	default:
		return true
	}
	return false
}

func (c *callers) confirmed(ctx context.Context, w http.ResponseWriter, a apitoken.ClientAuth) bool {
	client, auth, err := c.svc.Clients.Confirm(ctx, a)
	switch {
	case errors.Is(err, apitoken.ErrUnavailable):
		unavailable(w)
	case errors.Is(err, apitoken.ErrLimited):
		w.Header().Set("Retry-After", "60")
		challenge(w, http.StatusTooManyRequests)
	case err != nil || client.Public: // whose ID alone convinces
		challenge(w, http.StatusUnauthorized)
	case !client.Scopes.Cover(apitoken.Scopes{FollowScope}):
		c.svc.Adapter().Refused(ctx, auth, "follow", "the client has no scope "+string(FollowScope))
		challenge(w, http.StatusForbidden)
	default:
		return true
	}
	return false
}

func challenge(w http.ResponseWriter, status int) {
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="apitoken"`)
	}
	http.Error(w, http.StatusText(status), status)
}

func unavailable(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "1")
	http.Error(w, http.StatusText(http.StatusServiceUnavailable), http.StatusServiceUnavailable)
}

// write sends a body; a caller who has gone has nothing to be told.
func write(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
}
