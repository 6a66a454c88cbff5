// Package httpauth puts an [apitoken.Validator] in front of net/http handlers. It takes the credential out of the
// request and answers 400, 401, 403, 429 and 503 as RFC 6750 and RFC 9457 say; what is good is decided by
// [apitoken.Authorize].
package httpauth

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/opaque"
)

// Auth guards handlers. Make one with New.
type Auth struct {
	v    apitoken.Validator
	o    Options
	base string // of BaseURL, without a slash at its end
	algs string // by which proofs may be signed, for challenges (RFC 9449 §7.1)
}

// Options change what New does; nil means all defaults.
type Options struct {
	Realm    string // in challenges; empty: none
	Metadata string // resource_metadata in challenges (RFC 9728 §5.1)
	// BaseURL is this service as clients see it, for DPoP's htu; required to take DPoP proofs.
	// It is never taken from the request.
	BaseURL string
	// Address is where the caller is; nil: RemoteAddr. Behind proxies, see [BehindProxies].
	Address func(*http.Request) netip.Addr
	// Certificate is the SHA-256 of the caller's TLS certificate (RFC 8705), zero for none; nil: the connection's. Behind
	// a proxy that ends TLS, say which header you trust.
	Certificate func(*http.Request) [32]byte
	// StripCredential takes the credential out of the request before the handler sees it: Authorization and DPoP, and a
	// Session's cookies.
	StripCredential bool
	// Sources are other headers in which clients may send their credential, such as those of a service that this one replaces:
	// {Header: "X-API-Key"}, [BasicSource]. Authorization with Bearer or DPoP is always read; a request with two credentials is
	// malformed. nil: there are no others.
	Sources []Source
	// OnRefuse sees each refusal before it is answered, of the guards and of Error: for logs. It cannot change the verdict, and
	// sees no credential and no body. The error shows its detail as a log/slog attribute only.
	OnRefuse func(*http.Request, error)
}

// Source is a request header, beside Authorization with Bearer and DPoP, that may hold a credential. It can hold none that is bound
// to a DPoP key: the proof goes with the DPoP scheme.
type Source struct {
	Header string // its name, such as X-API-Key
	// Token takes the credential out of the header's value; empty: there is none. nil: the value is the credential. It must not
	// keep the value.
	Token func(value string) string
}

// BasicSource takes the password of HTTP Basic (RFC 7617), or the user name where the password is empty, as curl -u KEY: sends
// it: for programs that know no other way. A browser sends Basic by itself, also when another site's page asks it to: give this to
// no Auth whose handlers serve browsers. A [Session] refuses such requests from other sites.
func BasicSource() Source {
	return Source{Header: "Authorization", Token: func(value string) string {
		r := http.Request{Header: http.Header{"Authorization": {value}}}
		user, password, _ := r.BasicAuth()
		if password == "" {
			return user
		}
		return password
	}}
}

// New returns an Auth that asks v. It panics on a v that is nil and on Options that cannot be: a program cannot go on without.
func New(v apitoken.Validator, o *Options) *Auth {
	if v == nil {
		panic("httpauth: New needs a Validator, such as an *apitoken.Service")
	}
	algs := jws.PublicAlgs
	if x, ok := v.(interface{ ProofAlgorithms() []string }); ok { // those of this library say what they take
		algs = x.ProofAlgorithms()
	}
	a := &Auth{v: v, algs: strings.Join(algs, " ")}
	if o != nil {
		a.o = *o
	}
	if a.o.BaseURL != "" {
		u, err := url.Parse(a.o.BaseURL)
		if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http" {
			panic("httpauth: Options.BaseURL is no URL such as https://api.example.com")
		}
		a.base = strings.TrimSuffix(a.o.BaseURL, "/")
	}
	a.o.Sources = slices.Clone(a.o.Sources)
	for i := range a.o.Sources {
		s := &a.o.Sources[i]
		s.Header = http.CanonicalHeaderKey(s.Header)
		if s.Header == "" || strings.ContainsAny(s.Header, " \t\r\n:,") || s.Header == "Cookie" || s.Header == "Dpop" {
			panic("httpauth: Options.Sources names no header, or one with another meaning")
		}
		if s.Header == "Authorization" && s.Token == nil {
			panic("httpauth: Options.Sources: a source in Authorization needs Token, to know its scheme")
		}
	}
	for _, text := range []string{a.o.Realm, a.o.Metadata} {
		if !quotable(text) {
			panic("httpauth: Options.Realm and Metadata must be printable ASCII without quotes and backslashes")
		}
	}
	return a
}

func quotable(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// Require guards with a token that covers all the scopes. It panics on a malformed scope.
func (a *Auth) Require(scope apitoken.Scope, more ...apitoken.Scope) func(http.Handler) http.Handler {
	return a.guard(apitoken.AllOf(scope, more...))
}

// RequireAny guards with a token that covers one of the scopes.
func (a *Auth) RequireAny(scope apitoken.Scope, more ...apitoken.Scope) func(http.Handler) http.Handler {
	return a.guard(apitoken.AnyOf(scope, more...))
}

// Authenticated guards with any valid token.
func (a *Auth) Authenticated(next http.Handler) http.Handler {
	return a.guard(apitoken.Authenticated())(next)
}

// Optional lets requests without a token through; a bad token is refused all the same.
func (a *Auth) Optional(next http.Handler) http.Handler {
	return a.guard(apitoken.Public())(next)
}

// Guard guards with any requirement.
func (a *Auth) Guard(q apitoken.Requirement) func(http.Handler) http.Handler { return a.guard(q) }

func (a *Auth) guard(q apitoken.Requirement) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		mustHandle(next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a.serve(w, r, q, next)
		})
	}
}

// mustHandle stops a program at start that would fail at each request.
func mustHandle(h http.Handler) {
	if h == nil {
		panic("httpauth: a guard without a handler behind it")
	}
}

func (a *Auth) serve(w http.ResponseWriter, r *http.Request, q apitoken.Requirement, next http.Handler) {
	a.vary(w.Header())
	ctx := apitoken.WithOrigin(r.Context(), a.origin(r))
	ctx, err := a.authorize(ctx, r, q)
	if err != nil {
		a.Error(w, r.WithContext(ctx), err)
		return
	}
	r = r.WithContext(ctx)
	if a.o.StripCredential {
		r.Header = r.Header.Clone()
		r.Header.Del("Authorization")
		r.Header.Del("DPoP")
		for _, s := range a.o.Sources {
			r.Header.Del(s.Header)
		}
	}
	next.ServeHTTP(w, r)
}

// authorize is the decision for one request. What is no token68 is malformed (RFC 9110 §11.2), which is only looked at
// when the token is not good anyway.
func (a *Auth) authorize(ctx context.Context, r *http.Request, q apitoken.Requirement) (context.Context, error) {
	c, err := a.credential(r)
	if err != nil {
		return ctx, needing(err, q)
	}
	next, err := apitoken.Authorize(ctx, a.v, c, q)
	if err != nil && errors.Is(err, apitoken.ErrInvalidToken) && !token68(c.Token) {
		err = malformed("the credential is no token68")
	}
	return next, needing(err, q)
}

// needing makes a 401 say what the request needs, so that a client asks for all of it at once.
func needing(err error, q apitoken.Requirement) error {
	e, ok := err.(*apitoken.Error) // one that a host has wrapped stays as it is
	if !ok || judge(err).status != http.StatusUnauthorized || len(e.Needs.Scopes()) > 0 {
		return err
	}
	told := *e
	told.Needs = q
	return &told
}

var varyAuthorization = []string{"Authorization"}

// vary tells caches that another caller may get another answer.
func vary(h http.Header) {
	old, ok := h["Vary"]
	if !ok {
		h["Vary"] = varyAuthorization[:1:1] // nobody can append to it in place
		return
	}
	for _, v := range old {
		if v == "Authorization" || v == "*" || strings.EqualFold(v, "Authorization") {
			return
		}
	}
	h["Vary"] = append(old[:len(old):len(old)], "Authorization")
}

// vary also names the other headers that may hold a credential.
func (a *Auth) vary(h http.Header) {
	vary(h)
	for _, s := range a.o.Sources {
		varyBy(h, s.Header)
	}
}

// varyBy adds a header's name to Vary.
func varyBy(h http.Header, name string) {
	for _, v := range h["Vary"] {
		if v == "*" || strings.EqualFold(v, name) {
			return
		}
	}
	h["Vary"] = append(h["Vary"][:len(h["Vary"]):len(h["Vary"])], name)
}

func malformed(detail string) error {
	return &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: detail}
}

// credential takes the one credential out of r: the zero one when none came.
func (a *Auth) credential(r *http.Request) (apitoken.Credential, error) {
	c, err := a.authorization(r)
	if err != nil || len(a.o.Sources) == 0 {
		return c, err
	}
	for _, s := range a.o.Sources {
		token, err := s.find(r)
		switch {
		case err != nil:
			return c, err
		case token == "":
		case c.Token != "":
			return c, malformed("credentials in more than one place (RFC 6750 §2)")
		case inQuery(r.URL.RawQuery):
			return c, malformed("a token in a header and one in the query (RFC 6750 §2)")
		default:
			c = apitoken.Credential{Token: token, CertSHA256: a.certificate(r)}
		}
	}
	return c, nil
}

// find is the credential in the source's header: empty when there is none, or when it is one of Bearer or DPoP, which was read.
func (s *Source) find(r *http.Request) (string, error) {
	values := r.Header[s.Header]
	switch {
	case len(values) == 0:
		return "", nil
	case len(values) > 1:
		return "", malformed("more than one " + s.Header + " header")
	case s.Header == "Authorization" && (schemeOf(r) == "bearer" || schemeOf(r) == "dpop"):
		return "", nil
	case s.Token == nil:
		return values[0], nil
	}
	return s.Token(values[0]), nil
}

// certificate is the SHA-256 of what the caller showed in TLS.
func (a *Auth) certificate(r *http.Request) [32]byte {
	switch {
	case a.o.Certificate != nil:
		return a.o.Certificate(r)
	case r.TLS != nil && len(r.TLS.PeerCertificates) > 0:
		return sha256.Sum256(r.TLS.PeerCertificates[0].Raw)
	}
	return [32]byte{}
}

// authorization reads Authorization with Bearer or DPoP.
func (a *Auth) authorization(r *http.Request) (apitoken.Credential, error) {
	var c apitoken.Credential
	c.CertSHA256 = a.certificate(r)
	values := r.Header["Authorization"]
	if len(values) == 0 {
		return apitoken.Credential{}, nil // RFC 6750 §2.3's query parameter is not taken
	}
	if len(values) > 1 {
		return c, malformed("more than one Authorization header")
	}
	if inQuery(r.URL.RawQuery) {
		return c, malformed("a token in the header and one in the query (RFC 6750 §2)")
	}
	v := values[0] // net/http has trimmed it (RFC 9110 §5.5)
	scheme, rest := v, ""
	for i := range len(v) {
		if separates(v[i]) {
			scheme, rest = v[:i], v[i:]
			break
		}
	}
	var dpop bool
	switch {
	case scheme == "Bearer", strings.EqualFold(scheme, "Bearer"):
	case strings.EqualFold(scheme, "DPoP") && a.base != "":
		dpop = true
	case joined(rest):
		return c, malformed("several credentials in one Authorization header")
	default:
		return apitoken.Credential{}, nil // another scheme: no credential for us
	}
	// credentials = auth-scheme [ 1*SP token68 ] (RFC 9110 §11.4)
	c.Token = strings.TrimLeft(rest, " ")
	// Three searches that look at many bytes in one step, where ContainsAny would take them one by one.
	if c.Token == "" || strings.IndexByte(c.Token, ' ') >= 0 || strings.IndexByte(c.Token, '\t') >= 0 || strings.IndexByte(c.Token, ',') >= 0 {
		return c, malformed("the Authorization header is malformed")
	}
	if !dpop {
		return c, nil
	}
	proofs := r.Header["Dpop"]
	if len(proofs) != 1 || proofs[0] == "" || strings.IndexByte(proofs[0], ',') >= 0 {
		return c, &apitoken.Error{Code: apitoken.ErrInvalidProof, Detail: "exactly one DPoP header goes with the DPoP scheme (RFC 9449 §4.3)"}
	}
	c.DPoP, c.Method, c.URL = proofs[0], r.Method, a.base+r.URL.EscapedPath()
	return c, nil
}

// separates reports whether c stands between credentials or their parts.
func separates(c byte) bool { return c == ' ' || c == '\t' || c == ',' }

// inQuery reports whether a query names access_token, in whatever encoding. It makes no map of the others.
func inQuery(query string) bool {
	for len(query) >= len("access_token") {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		name, _, _ := strings.Cut(pair, "=")
		if name == "access_token" {
			return true
		}
		if strings.IndexByte(name, '%') >= 0 && len(name) <= 3*len("access_token") {
			if clear, err := url.QueryUnescape(name); err == nil && clear == "access_token" {
				return true
			}
		}
	}
	return false
}

// joined reports whether a credential of ours stands behind one of another scheme, in a header that something has joined
// from two. The commas alone do not say so: other schemes have parameters.
func joined(rest string) bool {
	for part := range strings.SplitSeq(rest, ",") {
		part = strings.Trim(part, " \t")
		if at := strings.IndexAny(part, " \t"); at >= 0 {
			part = part[:at]
		}
		if strings.EqualFold(part, "Bearer") || strings.EqualFold(part, "DPoP") {
			return true
		}
	}
	return false
}

// token68 is the syntax of a credential (RFC 9110 §11.2).
func token68(s string) bool {
	s = strings.TrimRight(s, "=")
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~' || c == '+' || c == '/') {
			return false
		}
	}
	return s != ""
}

// origin is where r came from.
func (a *Auth) origin(r *http.Request) apitoken.Origin {
	var o apitoken.Origin
	if a.o.Address != nil {
		o.Address = a.o.Address(r)
	} else {
		o.Address = peer(r)
	}
	if v := r.Header["User-Agent"]; len(v) > 0 {
		o.UserAgent = v[0]
	}
	if v := r.Header["X-Request-Id"]; len(v) > 0 {
		o.RequestID = v[0]
	}
	return o
}

func peer(r *http.Request) netip.Addr {
	if a, ok := peer4(r.RemoteAddr); ok {
		return a
	}
	p, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr().Unmap()
}

// peer4 reads what net/http writes of an IPv4 connection, such as 192.0.2.1:80. What is not exactly of that form is for
// netip to read, which takes four times as long.
func peer4(s string) (netip.Addr, bool) {
	var a [4]byte
	at, n, digits := 0, uint(0), 0 // the octet, its value so far and its digits
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			if digits > 0 && n == 0 {
				return netip.Addr{}, false // no zero in front
			}
			n = n*10 + uint(c-'0')
			if digits++; n > 255 {
				return netip.Addr{}, false
			}
		case digits > 0 && (c == '.' && at < 3 || c == ':' && at == 3):
			a[at] = byte(n)
			if at, n, digits = at+1, 0, 0; at == 4 {
				return netip.AddrFrom4(a), isPort(s[i+1:])
			}
		default:
			return netip.Addr{}, false
		}
	}
	return netip.Addr{}, false
}

func isPort(s string) bool {
	n := 0
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' || i == 5 {
			return false
		}
		n = n*10 + int(s[i]-'0')
	}
	return s != "" && n <= 65535
}

// BehindProxies is an Options.Address that believes X-Forwarded-For as far as trusted proxies have written it: from its
// right end, the first address that is no proxy's. From anybody else the header is not looked at.
func BehindProxies(trusted ...netip.Prefix) func(*http.Request) netip.Addr {
	ours := func(a netip.Addr) bool {
		for _, p := range trusted {
			if p.Contains(a) {
				return true
			}
		}
		return false
	}
	return func(r *http.Request) netip.Addr {
		at := peer(r)
		if !ours(at) {
			return at
		}
		lines := r.Header["X-Forwarded-For"]
		for i := len(lines) - 1; i >= 0; i-- {
			for line := lines[i]; line != ""; {
				hop := line
				if comma := strings.LastIndexByte(line, ','); comma >= 0 {
					line, hop = line[:comma], line[comma+1:]
				} else {
					line = ""
				}
				next, ok := address(strings.Trim(hop, " \t"))
				if !ok {
					return at // what stands left of junk proves nothing
				}
				if at = next; !ours(at) {
					return at
				}
			}
		}
		return at
	}
}

// address reads one of a forwarding header, with a port or without. A zone means nothing outside the machine that wrote it, and
// could be any text.
func address(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		p, err := netip.ParseAddrPort(s)
		if err != nil {
			return netip.Addr{}, false
		}
		a = p.Addr()
	}
	return a.Unmap().WithZone(""), true
}

// Origin puts the request's address, user agent and request ID into its context, for the events of
// handlers that no token guards, such as a login. The guards above do the same.
func (a *Auth) Origin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(apitoken.WithOrigin(r.Context(), a.origin(r))))
	})
}

// Check decides for one request without answering it, for frameworks with handlers of their own.
func (a *Auth) Check(r *http.Request, q apitoken.Requirement) (apitoken.Token, error) {
	ctx, err := a.authorize(apitoken.WithOrigin(r.Context(), a.origin(r)), r, q)
	if err != nil {
		return apitoken.Token{}, err
	}
	return apitoken.FromContext(ctx), nil
}

// Logout ends the session that the request's token belongs to: its access tokens and its refresh token. It takes the access token
// also when it has expired, and the refresh token as well, so the handler must stand behind no guard, which would refuse both. A
// session that has ended already is no error. ErrNoToken: none came; ErrInvalidToken: it is not one of s's;
// ErrInvalidRequest: an API key, which belongs to no session. Any other error says that the revocation is in force here and may not
// be in the store yet. For sessions in cookies, see [Session.End].
func Logout(a *Auth, s Service, r *http.Request, reason string) error {
	c, err := a.credential(r)
	if err != nil {
		return err
	}
	switch {
	case c.Token == "":
		return &apitoken.Error{Code: apitoken.ErrNoToken, Detail: "no token came"}
	case opaque.KindOf(c.Token) == opaque.APIKey:
		return malformed("an API key belongs to no session")
	}
	ctx := apitoken.WithOrigin(r.Context(), a.origin(r))
	target, err := s.TargetOf(ctx, c.Token)
	if errors.Is(err, apitoken.ErrNotFound) {
		return &apitoken.Error{Code: apitoken.ErrInvalidToken, Detail: "a logout with a token that was not issued here", Cause: err}
	}
	if err == nil {
		err = s.Revoke(ctx, target, reason)
	}
	return err
}

// rechecker is a validator of someone's own that looks at its tokens again by itself.
type rechecker interface {
	Recheck(ctx context.Context, t apitoken.Token) error
}

// watchEvery is how often a watched request's token is looked at again.
const watchEvery = time.Second

// Watch ends the request's context when its token expires or is revoked, within a second: for event streams, WebSockets and
// other requests that last. It stands inside a guard: auth.Require("live")(auth.Watch(handler)); in front of one it sees no token
// and ends nothing. context.Cause says why. A handler that has hijacked its connection looks at the context by itself.
func (a *Auth) Watch(next http.Handler) http.Handler {
	mustHandle(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t := apitoken.FromContext(r.Context())
		if t.IsZero() {
			next.ServeHTTP(w, r)
			return
		}
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(context.Canceled)
		done := make(chan struct{})
		go func() {
			defer close(done)
			a.watch(ctx, t, cancel)
		}()
		defer func() {
			cancel(context.Canceled)
			<-done
		}()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func (a *Auth) watch(ctx context.Context, t apitoken.Token, cancel context.CancelCauseFunc) {
	check := t.Recheck
	if v, ok := a.v.(rechecker); ok {
		check = func(ctx context.Context) error { return v.Recheck(ctx, t) }
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := check(ctx); err != nil {
			cancel(err)
			return
		}
	}
}
