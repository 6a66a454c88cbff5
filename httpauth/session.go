package httpauth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/bodytime"
	"github.com/apitoken-go/apitoken/internal/flightcache"
)

// Session is an Auth for browsers: the tokens live in two cookies that scripts cannot read. A guard
// that meets an expired access token refreshes it on the way, once however many tabs ask, and sets
// the new cookies; requests from other sites are refused as [http.CrossOriginProtection] does, which lets GET, HEAD and OPTIONS
// through: what they reach should change nothing. For Optional, a cookie that is no longer good is no token. A request with an
// Authorization header is treated as Auth treats it.
type Session struct {
	*Auth
	s       Service
	o       SessionOptions
	access  string // names of the cookies
	refresh string
	sites   *http.CrossOriginProtection

	renewals *flightcache.Cache[string, *apitoken.Issued] // by refresh token; it keeps nothing
}

// SessionOptions change what NewSession does; nil means all defaults.
type SessionOptions struct {
	Options
	Name string // of the cookies; empty: "session"
	// Insecure drops Secure and the __Host- prefix, for http on a developer's machine.
	Insecure bool
	// Login is where browsers are sent when there is no session, with ?next=, for Next; empty: they get 401.
	Login string
	// TrustedOrigins may make the browser send requests here, beside this service's own origin: scheme, host and port as in the
	// Origin header, such as "https://app.example.com" for a page whose API is api.example.com. See
	// [http.CrossOriginProtection.AddTrustedOrigin]. The host answers their CORS preflights.
	TrustedOrigins []string
	// MaxAge is how long a browser keeps the cookies when it is closed. Zero: not at all. The grant's own end is the service's.
	MaxAge time.Duration
}

// Service is what a Session needs of an [apitoken.Service].
type Service interface {
	apitoken.Validator
	apitoken.Issuer
	apitoken.Revoker
	TargetOf(ctx context.Context, token string) (apitoken.Target, error)
}

// NewSession returns a Session on s. It panics on what New panics on.
func NewSession(s Service, o *SessionOptions) *Session {
	if s == nil {
		panic("httpauth: NewSession needs a Service, such as an *apitoken.Service")
	}
	x := &Session{s: s, sites: http.NewCrossOriginProtection(), renewals: flightcache.New(flightcache.Config[string, *apitoken.Issued]{})}
	if o != nil {
		x.o = *o
	}
	for _, origin := range x.o.TrustedOrigins {
		if err := x.sites.AddTrustedOrigin(origin); err != nil {
			panic("httpauth: SessionOptions.TrustedOrigins: an origin is scheme, host and port, such as https://app.example.com")
		}
	}
	x.Auth = New(s, &x.o.Options)
	name := x.o.Name
	if name == "" {
		name = "session"
	}
	if !x.o.Insecure {
		name = "__Host-" + name
	}
	x.access, x.refresh = name, name+"-refresh"
	return x
}

// Require guards with a session whose token covers all the scopes.
func (s *Session) Require(scope apitoken.Scope, more ...apitoken.Scope) func(http.Handler) http.Handler {
	return s.Guard(apitoken.AllOf(scope, more...))
}

// RequireAny guards with a session whose token covers one of the scopes.
func (s *Session) RequireAny(scope apitoken.Scope, more ...apitoken.Scope) func(http.Handler) http.Handler {
	return s.Guard(apitoken.AnyOf(scope, more...))
}

// Authenticated guards with any session.
func (s *Session) Authenticated(next http.Handler) http.Handler {
	return s.Guard(apitoken.Authenticated())(next)
}

// Optional lets requests without a session through.
func (s *Session) Optional(next http.Handler) http.Handler { return s.Guard(apitoken.Public())(next) }

// Routes is [Auth.Routes] for sessions.
func (s *Session) Routes(table Routes) func(http.Handler) http.Handler {
	return s.routes(table, s.Guard)
}

// Mux is [Auth.Mux] for sessions.
func (s *Session) Mux(table map[string]Route) *http.ServeMux { return serveMux(table, s.Guard) }

// Check is [Auth.Check] for sessions. It answers nothing, so that it cannot set cookies: a session whose access token has
// expired is ErrExpired here, and goes on behind a guard.
func (s *Session) Check(r *http.Request, q apitoken.Requirement) (apitoken.Token, error) {
	byHeader, ambient := s.byHeader(r)
	if !byHeader || ambient {
		if err := s.sameSite(r); err != nil {
			return apitoken.Token{}, err
		}
	}
	if byHeader {
		return s.Auth.Check(r, q)
	}
	ctx, err := s.decide(apitoken.WithOrigin(r.Context(), s.origin(r)), cookie(r, s.access), q)
	if err != nil {
		return apitoken.Token{}, err
	}
	return apitoken.FromContext(ctx), nil
}

// Guard guards with any requirement.
func (s *Session) Guard(q apitoken.Requirement) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		plain := s.guard(q)(next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			byHeader, ambient := s.byHeader(r)
			if ambient {
				if err := s.sameSite(r); err != nil {
					s.Error(w, r, err)
					return
				}
			}
			if byHeader {
				plain.ServeHTTP(w, r)
				return
			}
			s.serveCookies(w, r, q, next)
		})
	}
}

// byHeader reports whether a request carries a credential in a header, as Auth reads it, and whether that is one which browsers send
// by themselves, like a cookie.
func (s *Session) byHeader(r *http.Request) (yes, ambient bool) {
	yes = len(r.Header["Authorization"]) > 0
	for _, source := range s.Auth.o.Sources {
		if token, err := source.find(r); token != "" || err != nil {
			yes = true
			ambient = ambient || source.Header == "Authorization"
		}
	}
	return yes, ambient
}

// errOtherOrigin is ErrDenied, told apart so that a developer sees what to configure.
var errOtherOrigin = fmt.Errorf("%w: the request is from an origin that is not trusted", apitoken.ErrDenied)

// sameSite refuses what another site made the browser send.
func (s *Session) sameSite(r *http.Request) error {
	if err := s.sites.Check(r); err != nil {
		return &apitoken.Error{Code: errOtherOrigin, Detail: "a request from another origin, which SessionOptions.TrustedOrigins does not name", Cause: err}
	}
	return nil
}

func (s *Session) serveCookies(w http.ResponseWriter, r *http.Request, q apitoken.Requirement, next http.Handler) {
	s.varyCookie(w.Header())
	ctx := apitoken.WithOrigin(r.Context(), s.origin(r))
	r = r.WithContext(ctx)
	if err := s.sameSite(r); err != nil {
		s.Error(w, r, err)
		return
	}
	ctx, err := s.authorizeCookies(ctx, w, r, q)
	if err != nil {
		s.turnAway(w, r, err)
		return
	}
	r = r.WithContext(ctx)
	if s.Auth.o.StripCredential {
		r.Header = r.Header.Clone()
		s.strip(r.Header)
	}
	next.ServeHTTP(w, r)
}

// strip leaves the cookies that are not ours.
func (s *Session) strip(h http.Header) {
	var kept []string
	for _, line := range h["Cookie"] {
		for part := range strings.SplitSeq(line, ";") {
			name, _, _ := strings.Cut(strings.TrimSpace(part), "=")
			if name != "" && name != s.access && name != s.refresh {
				kept = append(kept, strings.TrimSpace(part))
			}
		}
	}
	h.Del("Cookie")
	if kept != nil {
		h.Set("Cookie", strings.Join(kept, "; "))
	}
}

// decide is the verdict about the access token of a cookie; empty: none came.
func (s *Session) decide(ctx context.Context, access string, q apitoken.Requirement) (context.Context, error) {
	return apitoken.Authorize(ctx, s.s, apitoken.Bearer(access), q)
}

// authorizeCookies decides, and renews the cookies where that helps.
func (s *Session) authorizeCookies(ctx context.Context, w http.ResponseWriter, r *http.Request, q apitoken.Requirement) (context.Context, error) {
	access, refresh := cookie(r, s.access), cookie(r, s.refresh)
	if access != "" {
		got, err := s.decide(ctx, access, q)
		// An expired token, and one that must be minted again after a role has changed, may have a good successor.
		if err == nil || !errors.Is(err, apitoken.ErrInvalidToken) {
			return got, err
		}
	}
	if refresh == "" {
		if access != "" {
			s.clear(w)
		}
		return s.decide(ctx, "", q)
	}
	i, err := s.renew(ctx, refresh)
	switch {
	case err == nil:
		s.set(w, i)
		return s.decide(ctx, i.Access.Reveal(), q)
	case errors.Is(err, apitoken.ErrInvalidGrant), errors.Is(err, apitoken.ErrDenied):
		s.clear(w)
		return s.decide(ctx, "", q) // no session any more
	case !errors.Is(err, apitoken.ErrUnavailable):
		// Whatever else is wrong with it: who may come without a session does.
		if open, none := s.decide(ctx, "", q); none == nil {
			return open, nil
		}
	}
	return ctx, err
}

const renewTimeout = 10 * time.Second

// renew refreshes once however many tabs ask at the same time. Those that come a moment later get the same answer from
// the service itself.
func (s *Session) renew(ctx context.Context, token string) (*apitoken.Issued, error) {
	i, err := s.renewals.Load(ctx, token, time.Time{}, func() (func() (*apitoken.Issued, error), error) {
		return func() (*apitoken.Issued, error) {
			// The first tab may close: the others, and the cookies of the next request, still want the answer.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewTimeout)
			defer cancel()
			return s.s.Refresh(ctx, apitoken.RefreshRequest{Token: token})
		}, nil
	})
	if err != nil && (err == ctx.Err() || errors.Is(err, flightcache.ErrNoAnswer)) {
		return nil, &apitoken.Error{Code: apitoken.ErrUnavailable, Cause: err}
	}
	return i, err
}

// turnAway sends a browser that wants a page to the login, and answers others as Auth does.
func (s *Session) turnAway(w http.ResponseWriter, r *http.Request, err error) {
	page := r.Method == http.MethodGet && strings.Contains(r.Header.Get("Accept"), "text/html")
	if s.o.Login == "" || !page || !errors.Is(err, apitoken.ErrNoToken) {
		s.Error(w, r, err)
		return
	}
	bodytime.Refused(w, r)
	if s.Auth.o.OnRefuse != nil {
		s.Auth.o.OnRefuse(s.redacted(r), err)
	}
	to := s.o.Login
	if strings.Contains(to, "?") {
		to += "&next="
	} else {
		to += "?next="
	}
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, to+url.QueryEscape(r.URL.RequestURI()), http.StatusSeeOther)
}

// Next is where a login goes on: what a guard put into ?next=, if it is a place on this site, else "/". It reads the query
// and the form: a login page hands it through.
func (s *Session) Next(r *http.Request) string {
	next := r.FormValue("next")
	if !strings.HasPrefix(next, "/") || strings.HasPrefix(next, "//") {
		return "/"
	}
	for i := range len(next) { // browsers drop control characters, and read "\" as "/"
		if c := next[i]; c <= ' ' || c == 0x7f || c == '\\' {
			return "/"
		}
	}
	if u, err := url.Parse(next); err != nil || u.Host != "" || u.Scheme != "" {
		return "/"
	}
	return next
}

// maxCookie is what browsers keep of a cookie's name and value together (RFC 6265 §6.1); a longer one they drop in silence.
const maxCookie = 4096

// Start issues r with a refresh token and sets the cookies. A session that the browser has already ends: nobody can
// plant one that a login then takes over. ErrInvalidRequest: the access token is too long for a cookie, for its claims and
// scopes. Only a magic link may call it for a GET: what makes one request may make another site's page do so too.
func (s *Session) Start(w http.ResponseWriter, req *http.Request, r apitoken.Request) error {
	if err := s.sameSite(req); err != nil {
		return err
	}
	ctx := apitoken.WithOrigin(req.Context(), s.origin(req))
	r.Refresh = true
	i, err := s.s.Issue(ctx, r)
	if err != nil {
		return err
	}
	if n := len(s.access) + len(i.Access.Reveal()); n > maxCookie {
		if err := s.s.Revoke(ctx, apitoken.ByGrant(i.Token.Grant()), "too long for a cookie"); err != nil {
			return err
		}
		return &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: fmt.Sprintf("a cookie of %d bytes, browsers keep %d: fewer claims or scopes", n, maxCookie)}
	}
	if err := s.endOld(ctx, req, "another login"); err != nil {
		return err
	}
	s.set(w, i)
	return nil
}

// End revokes the session's grant, if there is one, also when its tokens have expired, and clears
// the cookies, in any case but one: ErrDenied, when another site made the browser ask. Any other error says that the revocation
// is in force here and not in the store yet. It is for a POST: a GET could come from any page.
func (s *Session) End(w http.ResponseWriter, req *http.Request, reason string) error {
	if err := s.sameSite(req); err != nil {
		return err
	}
	s.clear(w)
	return s.endOld(apitoken.WithOrigin(req.Context(), s.origin(req)), req, reason)
}

// endOld revokes what the cookies stand for. Of several of one name all count: one was planted, and must not keep the
// other's session alive.
func (s *Session) endOld(ctx context.Context, r *http.Request, reason string) error {
	const most = 8 // of each name: a planted heap of them costs no more
	var ended []apitoken.Target
	var failed error
	for _, name := range []string{s.refresh, s.access} {
		list := r.CookiesNamed(name)
		for _, c := range list[:min(len(list), most)] {
			target, err := s.s.TargetOf(ctx, c.Value)
			if err == nil && !slices.ContainsFunc(ended, func(t apitoken.Target) bool { return t.String() == target.String() }) {
				ended = append(ended, target)
				err = s.s.Revoke(ctx, target, reason)
			}
			if err != nil && !errors.Is(err, apitoken.ErrNotFound) && failed == nil {
				failed = err
			}
		}
	}
	return failed
}

// cookie is the value of the one cookie of a name: two of them are none, because one was planted.
func cookie(r *http.Request, name string) string {
	list := r.CookiesNamed(name)
	if len(list) != 1 {
		return ""
	}
	return list[0].Value
}

func (s *Session) set(w http.ResponseWriter, i *apitoken.Issued) {
	s.setOne(w, s.access, i.Access.Reveal())
	s.setOne(w, s.refresh, i.Refresh.Reveal())
	w.Header().Set("Cache-Control", "no-store") // what sets cookies is for one browser
}

func (s *Session) setOne(w http.ResponseWriter, name, value string) {
	replaceCookie(w.Header(), &http.Cookie{Name: name, Value: value, Path: "/", Secure: !s.o.Insecure, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int(s.o.MaxAge / time.Second)})
}

func (s *Session) clear(w http.ResponseWriter) {
	for _, name := range []string{s.access, s.refresh} {
		replaceCookie(w.Header(), &http.Cookie{Name: name, Path: "/", Secure: !s.o.Insecure, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: -1})
	}
	w.Header().Set("Cache-Control", "no-store")
}

// replaceCookie sets c in the place of an earlier one of the same name.
func replaceCookie(h http.Header, c *http.Cookie) {
	old := h["Set-Cookie"]
	kept := old[:0:0]
	for _, v := range old {
		if !strings.HasPrefix(v, c.Name+"=") {
			kept = append(kept, v)
		}
	}
	h["Set-Cookie"] = append(kept, c.String())
}

func (s *Session) varyCookie(h http.Header) {
	s.vary(h)
	varyBy(h, "Cookie")
}
