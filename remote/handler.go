package remote

import (
	"context"
	"crypto/sha256"
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
	"github.com/apitoken-go/apitoken/store"
)

// Paths below the issuer's own, except the metadata's, which RFC 8414 §3.1 fixes.
const (
	wellKnown      = "/.well-known/oauth-authorization-server"
	jwksPath       = "/.well-known/jwks.json"
	feedPath       = "/apitoken/revocations"
	introspectPath = "/apitoken/introspect"
)

// Handler serves metadata and JWKS to all, the feed and introspection to clients that hold FollowScope. It answers at the
// paths that the issuer's URL implies; mount it at the root of the issuer's host, or at those paths. oauthhttp serves
// richer metadata and the same feed: one of the two is enough.
func Handler(svc *apitoken.Service) http.Handler {
	base := strings.TrimSuffix(svc.Issuer(), "/")
	path := pathOf(base)
	mux := http.NewServeMux()
	mux.Handle("GET "+wellKnown+path, metadataHandler(svc.Issuer(), base))
	mux.Handle("GET "+path+jwksPath, JWKS(svc))
	mux.Handle("GET "+path+feedPath, Feed(svc))
	mux.Handle("POST "+path+introspectPath, Introspect(svc))
	return mux
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
		"introspection_endpoint_auth_methods_supported": []string{"client_secret_basic"},
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
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
	})
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
// answers when there is news, or after so long; the caller's right is checked again then. With fresh (milliseconds) it looks at
// the store where its own view is older than that, once for all who ask: a caller's bound may be tighter than the issuer's.
func Feed(svc *apitoken.Service) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if !allowed(svc, w, r) {
			return
		}
		q := r.URL.Query()
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
			err := svc.Wait(ctx, after)
			over := ctx.Err() != nil
			cancel()
			switch {
			case r.Context().Err() != nil:
				return
			case err != nil && !over: // the service is closed
				unavailable(w)
				return
			case !allowed(svc, w, r):
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
	})
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
func Introspect(svc *apitoken.Service) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if !allowed(svc, w, r) {
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, 96<<10)
		if err := r.ParseForm(); err != nil || len(r.PostForm["token"]) != 1 {
			http.Error(w, "exactly one token", http.StatusBadRequest)
			return
		}
		x, err := svc.Introspect(r.Context(), r.PostForm.Get("token"))
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
	})
}

// allowed confirms a client that holds FollowScope, by HTTP Basic or by an access token, and answers for the others.
func allowed(svc *apitoken.Service, w http.ResponseWriter, r *http.Request) bool {
	ctx := r.Context()
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		ctx = apitoken.WithOrigin(ctx, apitoken.Origin{Address: peer.Addr().Unmap(), UserAgent: r.UserAgent()})
	}
	headers := r.Header.Values("Authorization")
	if len(headers) != 1 {
		challenge(w, http.StatusUnauthorized)
		return false
	}
	if id, secret, ok := basicOf(headers[0]); ok {
		id, err1 := url.QueryUnescape(id)
		secret, err2 := url.QueryUnescape(secret)
		c, err := svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: id, Secret: apitoken.NewSecret(secret)})
		switch err = errors.Join(err1, err2, err); {
		case errors.Is(err, apitoken.ErrUnavailable):
			unavailable(w)
		case errors.Is(err, apitoken.ErrLimited):
			w.Header().Set("Retry-After", "60")
			challenge(w, http.StatusTooManyRequests)
		case err != nil:
			challenge(w, http.StatusUnauthorized)
		case c.Public || !c.Scopes.Cover(apitoken.Scopes{FollowScope}):
			challenge(w, http.StatusForbidden)
		default:
			return true
		}
		return false
	}
	scheme, token, _ := strings.Cut(headers[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		challenge(w, http.StatusUnauthorized)
		return false
	}
	t, err := svc.Validate(ctx, apitoken.Bearer(token))
	switch {
	case errors.Is(err, apitoken.ErrUnavailable):
		unavailable(w)
	case err != nil:
		challenge(w, http.StatusUnauthorized)
	case !t.IsClient() || !t.Allows(FollowScope):
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
