// Package oauthhttp is the standard OAuth 2.0 endpoints over an [apitoken.Service], so that clients of every language
// get, exchange, inspect and revoke tokens. A handler parses a request strictly, confirms the client, calls the
// service and answers; what may be issued is decided by the service.
//
//	oauth, err := oauthhttp.New(svc, nil)
//	mux.Handle("/", oauth)
//
// That serves client credentials, refresh, token exchange, revocation, introspection, keys and metadata. The
// authorization code flow needs the host's login page ([Options.Consent]), the device flow its page for codes
// ([Options.DevicePage]); both are off without. Dynamic registration is off without [Options.Registration].
//
// Paths lie below the issuer's URL, which is the only source of every URL in an answer: a request's Host header is
// never believed.
package oauthhttp

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/internal/bodytime"
	"github.com/apitoken-go/apitoken/internal/fetch"
	"github.com/apitoken-go/apitoken/internal/hook"
	"github.com/apitoken-go/apitoken/internal/peercert"
	"github.com/apitoken-go/apitoken/internal/throttle"
	"github.com/apitoken-go/apitoken/remote"
)

// Paths below the issuer's own.
const (
	authorizePath  = "/authorize"
	parPath        = "/par"
	tokenPath      = "/token"
	devicePath     = "/device_authorization"
	revokePath     = "/revoke"
	introspectPath = "/introspect"
	registerPath   = "/register"
	jwksPath       = "/.well-known/jwks.json"
	openAPIPath    = "/openapi.json"

	metadataPath = "/.well-known/oauth-authorization-server" // between host and path of the issuer (RFC 8414 §3.1)
	openIDPath   = "/.well-known/openid-configuration"       // there, or behind the issuer's path (RFC 8414 §5)
)

// Options change what New does; nil means all defaults.
type Options struct {
	// Consent logs the user in and asks for his consent; nil: there is no authorization endpoint.
	Consent Consent
	// DevicePage is the URL of the host's page where users type a device's code (RFC 8628 §3.3); empty: there is no device
	// grant. The page calls Handler.Device, ApproveDevice and DenyDevice.
	DevicePage string
	// Assertions are the issuers that may vouch for identities (RFC 7523); none: there is no jwt-bearer grant.
	Assertions []AssertionIssuer
	// Details checks authorization_details (RFC 9396); nil: requests with them are refused.
	Details *Details
	// Registration lets programs register clients (RFC 7591); nil: they cannot.
	Registration *Registration
	// Documents lets clients describe themselves at the URL that is their ID; nil: they cannot.
	Documents *Documents
	// Resources are protected resources whose metadata are served beside the issuer's (RFC 9728): those on its host.
	Resources []Resource
	// Scopes are named in the metadata; nil: none are.
	Scopes apitoken.Scopes

	// Metadata may change what the issuer's metadata announce: leave members out, add its own, name endpoints as they are reached
	// through a gateway. It gets the members by their names in JSON, in memory of its own, at each request and from several at once.
	// It changes nothing of what the endpoints do. The issuer stays; with apitoken.Config.FAPI no list may name more than it did.
	// nil: they are told as they are.
	Metadata func(members map[string]any)
	// OpenIDConfiguration serves the metadata at /.well-known/openid-configuration too, before and behind the issuer's path, for
	// clients that look nowhere else. It makes no OpenID provider of the issuer: there are no ID tokens.
	OpenIDConfiguration bool

	// InsecureEndpointAudiences takes client assertions whose aud is the token endpoint, or the endpoint at which they come, beside
	// those for the issuer: for clients that cannot be told otherwise. A malicious server that a client also uses can name these
	// URLs as its own and then pass for the client here, which is why draft-ietf-oauth-rfc7523bis §4 takes the issuer alone.
	InsecureEndpointAudiences bool

	RequirePushed bool // refuse authorization requests that were not pushed (RFC 9126 §5); always so with apitoken.Config.FAPI
	RequireNonce  bool // refuse DPoP proofs without a nonce of the service (RFC 9449 §8)

	CodeLifetime   time.Duration // of authorization codes; zero: 1 min, at most 10 min
	PushedLifetime time.Duration // of pushed requests, from the push to the code; zero: 9 min, at most 1 h
	DeviceLifetime time.Duration // of device codes; zero: 10 min, at most 1 h

	// MutualTLS is the base URL of the same endpoints on a host where clients show certificates (RFC 8705 §5); empty: they
	// do so on the issuer's.
	MutualTLS string
	// ClientCAs name the clients of tls_client_auth where the TLS listener asks for certificates without verifying them,
	// as it must for self-signed ones. nil: only what the listener has verified counts.
	ClientCAs *x509.CertPool
	// Certificate is the certificate that the client showed, and whether its chain was verified; nil: the connection's. Behind
	// a proxy that ends TLS, see [CertificateBehindProxies].
	Certificate func(*http.Request) (cert *x509.Certificate, verified bool)
	// Address is where the caller is, for audit and throttling; nil: RemoteAddr. Behind proxies, see
	// [httpauth.BehindProxies].
	Address func(*http.Request) netip.Addr
	// Origins are those of web pages that may call the endpoints which browsers call; nil: all of them, which is safe
	// because no cookie counts here.
	Origins []string

	Logger *slog.Logger     // of failures that are ours; nil: silent
	Now    func() time.Time // the service's Config.Now; nil: time.Now
}

// Handler is all endpoints as one http.Handler; each is also to be had alone.
type Handler struct {
	svc     *apitoken.Service
	adapter *apitoken.Adapter
	o       Options
	fapi    bool   // apitoken.Config.FAPI
	base    string // the issuer without a slash at its end
	path    string // of base
	root    string // scheme and host of base
	mtls    *url.URL
	auth    *httpauth.Auth
	log     *slog.Logger
	now     func() time.Time
	mux     *http.ServeMux

	paths []string // of mux

	readTime time.Duration // for a whole body

	tries  throttle.Table // of user codes, by source
	newly  throttle.Table // of clients that make themselves, by source
	fetch  *fetch.Fetcher
	issues []*assertionIssuer
	spec   []byte // the OpenAPI document
}

const (
	defaultCode   = time.Minute
	defaultPushed = 9 * time.Minute // under the 600 s of FAPI 2.0 §5.3.2.2
	defaultDevice = 10 * time.Minute
)

// New returns the endpoints of svc. It fails, naming the field in an [*apitoken.ConfigError], when o contradicts itself.
func New(svc *apitoken.Service, o *Options) (*Handler, error) {
	h := &Handler{svc: svc, adapter: svc.Adapter(), readTime: bodytime.Default, fapi: svc.Settings().FAPI}
	if o != nil {
		h.o = *o
	}
	h.base = strings.TrimSuffix(svc.Issuer(), "/")
	u, err := url.Parse(h.base)
	if err != nil {
		return nil, wrong("Issuer", "is no URL")
	}
	h.path, h.root = u.EscapedPath(), u.Scheme+"://"+u.Host
	if err := h.o.check(u); err != nil {
		return nil, err
	}
	if h.fapi {
		if err := h.o.checkFAPI(); err != nil {
			return nil, err
		}
	}
	if h.o.MutualTLS != "" {
		h.o.MutualTLS = strings.TrimSuffix(h.o.MutualTLS, "/")
		h.mtls, _ = url.Parse(h.o.MutualTLS)
	}
	if h.log = h.o.Logger; h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	if h.now = h.o.Now; h.now == nil {
		h.now = time.Now
	}
	if d := h.o.Documents; d != nil {
		h.fetch = fetch.New(fetch.Options{TLS: d.TLS, Reachable: d.InsecureReachable, Now: h.now})
	}
	for _, a := range h.o.Assertions {
		h.issues = append(h.issues, newAssertionIssuer(a, h.now))
	}
	h.auth = httpauth.New(svc, &httpauth.Options{Realm: "oauth", BaseURL: h.root, Address: h.o.Address,
		Certificate: func(r *http.Request) [32]byte {
			cert, _ := h.certificate(r)
			return sumOf(cert)
		}})
	if _, err := h.announced(); err != nil {
		return nil, wrong("Metadata", err.Error())
	}
	if h.spec, err = json.Marshal(h.openAPI()); err != nil {
		return nil, wrong("Options", "do not make a description")
	}
	h.mount()
	return h, nil
}

func wrong(field, why string) error {
	return &apitoken.ConfigError{Field: field, Err: &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "oauthhttp: Options." + field + ": " + why}}
}

func (o *Options) check(issuer *url.URL) error {
	for _, d := range []struct {
		field      string
		d          *time.Duration
		zero, most time.Duration
	}{
		{"CodeLifetime", &o.CodeLifetime, defaultCode, 10 * time.Minute},
		{"PushedLifetime", &o.PushedLifetime, defaultPushed, time.Hour},
		{"DeviceLifetime", &o.DeviceLifetime, defaultDevice, time.Hour},
	} {
		if *d.d == 0 {
			*d.d = d.zero
		}
		if *d.d < time.Second || *d.d > d.most {
			return wrong(d.field, "is not between 1 s and "+d.most.String())
		}
	}
	for field, raw := range map[string]string{"DevicePage": o.DevicePage, "MutualTLS": o.MutualTLS} {
		if raw == "" {
			continue
		}
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != issuer.Scheme {
			return wrong(field, "is no URL of the issuer's scheme, without query and fragment")
		}
	}
	if o.RequirePushed && o.Consent == nil {
		return wrong("RequirePushed", "there is no authorization endpoint without Consent")
	}
	for _, origin := range o.Origins {
		u, err := url.Parse(origin)
		if err != nil || u.Scheme == "" || u.Host == "" || origin != u.Scheme+"://"+u.Host {
			return wrong("Origins", "an origin is scheme, host and port")
		}
	}
	seen := map[string]bool{}
	for _, a := range o.Assertions {
		switch {
		case a.Issuer == "" || seen[a.Issuer]:
			return wrong("Assertions", "an issuer without a name, or one named twice")
		case a.Keys == nil || a.Subject == nil:
			return wrong("Assertions", "an issuer without Keys or Subject")
		}
		if err := a.checkIDJAG(issuer.String()); err != nil {
			return err
		}
		seen[a.Issuer] = true
	}
	if d := o.Details; d != nil && (len(d.Types) == 0 || d.Check == nil) {
		return wrong("Details", "needs Types and Check")
	}
	if r := o.Registration; r != nil {
		if err := r.check(); err != nil {
			return err
		}
	}
	if d := o.Documents; d != nil {
		if o.Consent == nil {
			return wrong("Documents", "there is no authorization endpoint without Consent")
		}
		if err := d.check(); err != nil {
			return err
		}
	}
	for i := range o.Resources {
		if err := o.Resources[i].check(); err != nil {
			return err
		}
	}
	return nil
}

func (h *Handler) mount() {
	h.mux = http.NewServeMux()
	at := func(path string, endpoint http.Handler) {
		h.paths = append(h.paths, path)
		h.mux.Handle(path, endpoint)
	}
	at(metadataPath+h.path, h.Metadata())
	if h.o.OpenIDConfiguration {
		at(openIDPath+h.path, h.Metadata())
		if h.path != "" {
			at(h.path+openIDPath, h.Metadata())
		}
	}
	at(h.path+jwksPath, h.JWKS())
	at(h.path+openAPIPath, h.OpenAPI())
	at(h.path+tokenPath, h.Token())
	at(h.path+revokePath, h.Revocation())
	at(h.path+introspectPath, h.Introspection())
	if feed, err := url.Parse(remote.FeedURL(h.base)); err == nil {
		at(feed.EscapedPath(), getOnly(remote.Feed(h.svc, remote.ClientCertificates(h.certificate))))
	}
	if h.o.Consent != nil {
		at(h.path+authorizePath, h.Authorize())
		at(h.path+parPath, h.Pushed())
	}
	if h.o.DevicePage != "" {
		at(h.path+devicePath, h.DeviceAuthorization())
	}
	if h.o.Registration != nil {
		at(h.path+registerPath, h.Register())
		at(h.path+registerPath+"/{client}", h.Register())
	}
	for _, r := range h.o.Resources {
		u, err := url.Parse(ResourceMetadataURL(r.Resource))
		if err == nil && u.Scheme+"://"+u.Host == h.root {
			path := u.EscapedPath()
			if strings.HasSuffix(path, "/") {
				path += "{$}"
			}
			r.FAPI = r.FAPI || h.fapi
			at(path, ResourceMetadata(r, h.svc.Issuer()))
		}
	}
}

// getOnly lets reading requests through.
func getOnly(next http.Handler) http.Handler {
	return bodytime.Front(bodytime.Default, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		next.ServeHTTP(w, r)
	}))
}

// Paths are what the Handler serves, as patterns of [http.ServeMux], for a host that has other things on the same
// server: each is to be given to the Handler as it is.
func (h *Handler) Paths() []string { return slices.Clone(h.paths) }

// ServeHTTP answers at the paths that the issuer's URL implies; mount it at the root of the issuer's host.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.bounded(h.mux).ServeHTTP(w, r) }

// bounded gives a request's body a deadline before anything is decided. Each endpoint that is mounted alone has it too.
func (h *Handler) bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { bodytime.Front(h.readTime, next).ServeHTTP(w, r) })
}

// urlOf is where clients send requests for path: the issuer's URL, or its alias for clients with certificates. The Host
// header only chooses between these two, both of which are ours.
func (h *Handler) urlOf(r *http.Request, path string) string {
	if h.mtls != nil && strings.EqualFold(r.Host, h.mtls.Host) {
		return h.o.MutualTLS + path
	}
	return h.base + path
}

// endpoint frames a handler: methods, caching, CORS, where the caller is, and the answer to its error.
func (h *Handler) endpoint(browsers bool, methods string, serve func(http.ResponseWriter, *http.Request) error) http.Handler {
	return h.bounded(h.auth.Origin(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		head := w.Header()
		head.Set("Cache-Control", "no-store") // RFC 6749 §5.1
		head.Set("Pragma", "no-cache")
		head.Set("X-Content-Type-Options", "nosniff")
		if browsers && h.cors(w, r, methods) {
			return
		}
		if !strings.Contains(" "+methods+" ", " "+r.Method+" ") {
			head.Set("Allow", strings.ReplaceAll(methods, " ", ", "))
			h.refuse(w, r, &refusal{status: http.StatusMethodNotAllowed, code: "invalid_request", text: "Another method is needed."})
			return
		}
		if err := serve(w, r); err != nil {
			h.refuse(w, r, err)
		}
	})))
}

// corsHeaders are what pages may send. Headers of other protocols are allowed by the wildcard, which covers all but Authorization
// where no cookies are sent, and by name for browsers that do not know it.
const corsHeaders = "Authorization, Content-Type, DPoP, MCP-Protocol-Version, *"

// cors answers a preflight, and lets pages read the answer. It reports whether all is said.
func (h *Handler) cors(w http.ResponseWriter, r *http.Request, methods string) bool {
	head := w.Header()
	origin := r.Header.Get("Origin")
	preflight := r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != ""
	allowed := "*" // to all, also to who does not say where it comes from: a cache may keep what is public for the next one
	if h.o.Origins != nil {
		head.Add("Vary", "Origin")
		if allowed = ""; slices.Contains(h.o.Origins, origin) {
			allowed = origin
		}
	}
	if allowed != "" {
		head.Set("Access-Control-Allow-Origin", allowed)
		head.Set("Access-Control-Expose-Headers", "WWW-Authenticate, DPoP-Nonce, Retry-After")
		if preflight {
			head.Set("Access-Control-Allow-Methods", strings.ReplaceAll(methods, " ", ", "))
			head.Set("Access-Control-Allow-Headers", corsHeaders)
			head.Set("Access-Control-Max-Age", "600")
		}
	}
	if preflight {
		w.WriteHeader(http.StatusNoContent)
	}
	return preflight
}

// JWKS serves the published keys (RFC 7517).
func (h *Handler) JWKS() http.Handler { return publicOnly(remote.JWKS(h.svc)) }

// publicOnly is getOnly for documents that pages of any origin may read.
func publicOnly(next http.Handler) http.Handler {
	get := getOnly(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !publicPreflight(w, r) {
			get.ServeHTTP(w, r)
		}
	})
}

// publicPreflight answers the CORS preflight for a public document. It reports whether all is said.
func publicPreflight(w http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		return false
	}
	head := w.Header()
	head.Set("Access-Control-Allow-Origin", "*")
	head.Set("Access-Control-Allow-Methods", "GET, HEAD")
	head.Set("Access-Control-Allow-Headers", corsHeaders)
	head.Set("Access-Control-Max-Age", "600")
	w.WriteHeader(http.StatusNoContent)
	return true
}

// certificate is what the client showed in TLS, and whether its chain was verified.
func (h *Handler) certificate(r *http.Request) (*x509.Certificate, bool) {
	if h.o.Certificate != nil {
		return h.o.Certificate(r)
	}
	return peercert.Of(r, h.o.ClientCAs, h.now())
}

func sumOf(cert *x509.Certificate) [32]byte {
	if cert == nil {
		return [32]byte{}
	}
	return sha256.Sum256(cert.Raw)
}

// answer sends a JSON body.
func (h *Handler) answer(w http.ResponseWriter, r *http.Request, status int, body any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	send(w, r, status, raw)
	return nil
}

// hookTime bounds a function of the host's that a request waits for.
const hookTime = 5 * time.Second

// askHost calls a function of the host's, which name says. Where it panics, does not come back or ends with a context, nothing was
// decided: ErrUnavailable. It may still run when askHost has answered, so that it must not share memory with the caller.
func askHost[T any](ctx context.Context, h *Handler, name string, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, hookTime)
	defer cancel()
	v, err := hook.Call(ctx, f)
	if stack := hook.Stack(err); stack != "" {
		h.log.ErrorContext(ctx, "oauthhttp: "+name+" panicked", "error", err, "stack", stack)
	}
	if isUnavailable(err) || errors.Is(err, hook.ErrPanicked) {
		var none T
		return none, &apitoken.Error{Code: apitoken.ErrUnavailable, Detail: name, Cause: err}
	}
	return v, err
}

func isUnavailable(err error) bool {
	return errors.Is(err, apitoken.ErrUnavailable) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
