package httpauth

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken"
)

// Session is an Auth for browsers: the tokens live in two cookies that scripts can not read. A guard
// that meets an expired access token refreshes it on the way, once however many tabs ask, and sets
// the new cookies; requests from other sites are refused as [http.CrossOriginProtection] does. For
// Optional, a cookie that is no longer good is no token. A request with an Authorization header is
// treated as Auth treats it.
type Session struct {
	*Auth
	s       Service
	o       SessionOptions
	access  string // names of the cookies
	refresh string
	sites   *http.CrossOriginProtection

	mu      sync.Mutex // guards flights
	flights map[string]*flight
}

// SessionOptions change what NewSession does; nil means all defaults.
type SessionOptions struct {
	Options
	Name string // of the cookies; empty: "session"
	// Insecure drops Secure and the __Host- prefix, for http on a developer's machine.
	Insecure bool
	// Login is where browsers are sent when there is no session, with ?next=; empty: they get 401.
	Login string
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
	x := &Session{s: s, sites: http.NewCrossOriginProtection(), flights: map[string]*flight{}}
	if o != nil {
		x.o = *o
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
	inner := *s.Auth
	return func(next http.Handler) http.Handler {
		mux := http.NewServeMux()
		for pattern, q := range table {
			mux.Handle(pattern, rule{q})
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !canonical(r) {
				inner.refuse(w, r, malformed("the path is not canonical"))
				return
			}
			h, pattern := mux.Handler(r)
			found, ok := h.(rule)
			if pattern == "" || !ok {
				inner.nowhere(w, r, h)
				return
			}
			s.Guard(found.q)(next).ServeHTTP(w, r)
		})
	}
}

// Guard guards with any requirement.
func (s *Session) Guard(q apitoken.Requirement) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		plain := s.guard(q)(next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if len(r.Header["Authorization"]) > 0 {
				plain.ServeHTTP(w, r)
				return
			}
			s.serveCookies(w, r, q, next)
		})
	}
}

func (s *Session) serveCookies(w http.ResponseWriter, r *http.Request, q apitoken.Requirement, next http.Handler) {
	varyCookie(w.Header())
	ctx := apitoken.WithOrigin(r.Context(), s.origin(r))
	r = r.WithContext(ctx)
	if err := s.sites.Check(r); err != nil {
		s.refuse(w, r, &apitoken.Error{Code: apitoken.ErrDenied, Detail: "a request from another site", Cause: err})
		return
	}
	next2, err := s.authorizeCookies(ctx, w, r, q)
	if err != nil {
		s.turnAway(w, r, err)
		return
	}
	r = r.WithContext(next2)
	if s.Auth.o.StripCredential {
		r.Header = r.Header.Clone()
		r.Header.Del("Cookie")
	}
	next.ServeHTTP(w, r)
}

// authorizeCookies decides, and renews the cookies where that helps.
func (s *Session) authorizeCookies(ctx context.Context, w http.ResponseWriter, r *http.Request, q apitoken.Requirement) (context.Context, error) {
	access, refresh := cookie(r, s.access), cookie(r, s.refresh)
	public := q.String() == apitoken.Public().String()
	decide := func(token string) (context.Context, error) {
		var c apitoken.Credential
		if token != "" {
			c = apitoken.Bearer(token)
		}
		return apitoken.Authorize(ctx, s.s, c, q)
	}
	if access == "" && refresh == "" {
		return decide("")
	}
	if access != "" {
		got, err := decide(access)
		// An expired token, and one that must be minted again after a role has changed, may have a good successor.
		if err == nil || !errors.Is(err, apitoken.ErrInvalidToken) {
			return got, err
		}
	}
	if refresh == "" {
		s.clear(w)
		return decide("")
	}
	i, err := s.renew(ctx, refresh)
	switch {
	case err == nil:
		s.set(w, i)
		return decide(i.Access.Reveal())
	case errors.Is(err, apitoken.ErrInvalidGrant), errors.Is(err, apitoken.ErrDenied):
		s.clear(w)
		return decide("") // no session any more
	case public && !errors.Is(err, apitoken.ErrUnavailable):
		return decide("")
	}
	return ctx, err
}

// flight is one refresh that several requests wait for.
type flight struct {
	done chan struct{}
	i    *apitoken.Issued
	err  error
}

// renew refreshes once however many tabs ask at the same time; those that come a moment later get the same answer from
// the service itself.
func (s *Session) renew(ctx context.Context, token string) (*apitoken.Issued, error) {
	s.mu.Lock()
	f := s.flights[token]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		s.flights[token] = f
		// The first tab may close: the others, and the cookies of the next request, still want the answer.
		go func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			f.i, f.err = s.s.Refresh(ctx, apitoken.RefreshRequest{Token: token})
			s.mu.Lock()
			delete(s.flights, token)
			s.mu.Unlock()
			close(f.done)
		}(context.WithoutCancel(ctx))
	}
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.i, f.err
	case <-ctx.Done():
		return nil, &apitoken.Error{Code: apitoken.ErrUnavailable, Cause: ctx.Err()}
	}
}

// turnAway sends a browser that wants a page to the login, and answers others as Auth does.
func (s *Session) turnAway(w http.ResponseWriter, r *http.Request, err error) {
	page := r.Method == http.MethodGet && strings.Contains(r.Header.Get("Accept"), "text/html")
	if s.o.Login == "" || !page || !errors.Is(err, apitoken.ErrNoToken) {
		s.refuse(w, r, err)
		return
	}
	if s.Auth.o.OnRefuse != nil {
		s.Auth.o.OnRefuse(redacted(r), err)
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

// Start issues r with a refresh token and sets the cookies. A session that the browser has already ends: nobody can
// plant one that a login then takes over.
func (s *Session) Start(w http.ResponseWriter, req *http.Request, r apitoken.Request) error {
	if err := s.sites.Check(req); err != nil {
		return &apitoken.Error{Code: apitoken.ErrDenied, Detail: "a login from another site", Cause: err}
	}
	ctx := apitoken.WithOrigin(req.Context(), s.origin(req))
	r.Refresh = true
	i, err := s.s.Issue(ctx, r)
	if err != nil {
		return err
	}
	if err := s.endOld(ctx, req, "another login"); err != nil && !errors.Is(err, apitoken.ErrNotFound) {
		return err
	}
	s.set(w, i)
	return nil
}

// End revokes the session's grant, if there is one, also when its tokens have expired, and clears
// the cookies, in any case. An error says that the revocation is not in the store yet.
func (s *Session) End(w http.ResponseWriter, req *http.Request, reason string) error {
	if err := s.sites.Check(req); err != nil {
		return &apitoken.Error{Code: apitoken.ErrDenied, Detail: "a logout from another site", Cause: err}
	}
	s.clear(w)
	err := s.endOld(apitoken.WithOrigin(req.Context(), s.origin(req)), req, reason)
	if errors.Is(err, apitoken.ErrNotFound) {
		return nil
	}
	return err
}

func (s *Session) endOld(ctx context.Context, r *http.Request, reason string) error {
	for _, name := range []string{s.refresh, s.access} {
		token := cookie(r, name)
		if token == "" {
			continue
		}
		target, err := s.s.TargetOf(ctx, token)
		if errors.Is(err, apitoken.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		return s.s.Revoke(ctx, target, reason)
	}
	return nil
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

func varyCookie(h http.Header) {
	vary(h)
	for _, v := range h["Vary"] {
		if v == "Cookie" {
			return
		}
	}
	h["Vary"] = append(h["Vary"][:len(h["Vary"]):len(h["Vary"])], "Cookie")
}
