// Package connectauth guards servers that are made with connectrpc.com/connect, whichever of its protocols a client speaks.
//
//	guard := connectauth.New(svc, connectauth.Options{Methods: map[string]apitoken.Requirement{
//		ordersv1connect.OrdersListProcedure:  apitoken.AllOf("orders:read"),
//		ordersv1connect.OrdersWatchProcedure: apitoken.AllOf("orders:read"),
//	}})
//	mux.Handle(ordersv1connect.NewOrdersHandler(orders{}, connect.WithInterceptors(guard)))
//
// The decision is [httpauth.Auth]'s, about the HTTP request that a call is. In a handler [apitoken.FromContext] is the caller.
//
// A refusal is a *connect.Error with google.rpc.ErrorInfo, and with google.rpc.RetryInfo where a retry may help.
// docs/adapters.md has the table of codes and reasons; Connect's own protocol sends them under the HTTP status that httpauth would.
// The response's headers have WWW-Authenticate and DPoP-Nonce where HTTP has them.
//
// Connect reads the message of a unary call before any interceptor runs: bound it by connect.WithReadMaxBytes.
package connectauth

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net/http"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/internal/rpc"
)

// Options say what is guarded.
type Options struct {
	// Methods says what each procedure requires, by its name: "/package.Service/Method", the constants that Connect generates. A
	// procedure that is not named is refused, whoever calls it. For one that needs no token, say [apitoken.Public].
	Methods map[string]apitoken.Requirement
	// HTTP is passed on to [httpauth.New]. With BaseURL DPoP proofs are taken: htu is BaseURL and the procedure, so that BaseURL
	// ends with the prefix under which the handlers are mounted, if there is one. Address, Certificate, Sources and OnRefuse see a
	// request with the call's headers; without Certificate it is the one of the connection, for handlers behind [Connection].
	// StripCredential takes the credential out of the call's headers.
	HTTP httpauth.Options
}

// Guard is a [connect.Interceptor]. Make it with New. Its methods may be called from several goroutines.
type Guard struct {
	methods map[string]apitoken.Requirement
	auth    *httpauth.Auth
	strip   []string // headers that handlers do not see
}

// New returns a Guard that asks v. It panics on Options that cannot be, as httpauth.New does: a server cannot run without.
func New(v apitoken.Validator, o Options) *Guard {
	for method := range o.Methods {
		if !rpc.IsMethod(method) {
			panic(fmt.Sprintf("connectauth: Options.Methods: %q is no name of a procedure, such as /orders.v1.Orders/List", method))
		}
	}
	g := &Guard{methods: maps.Clone(o.Methods), auth: httpauth.New(v, &o.HTTP)}
	if o.HTTP.StripCredential {
		g.strip = rpc.Credentials()
		for _, s := range o.HTTP.Sources {
			g.strip = append(g.strip, s.Header)
		}
	}
	return g
}

// Connection tells the guards behind it of the TLS connection, which Connect keeps from interceptors: put it around the server's
// handlers where tokens are bound to client certificates (RFC 8705). Without it such tokens are refused.
func Connection(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil {
			r = r.WithContext(context.WithValue(r.Context(), connectionKey{}, r.TLS))
		}
		next.ServeHTTP(w, r)
	})
}

type connectionKey struct{}

// WrapUnary implements [connect.Interceptor]. A client's calls pass.
func (g *Guard) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (answer connect.AnyResponse, err error) {
		if req.Spec().IsClient {
			return next(ctx, req)
		}
		r := request(ctx, req.HTTPMethod(), req.Spec(), req.Peer(), req.Header())
		told := http.Header{}
		if call, ok := connect.CallInfoForHandlerContext(ctx); ok {
			told = call.ResponseHeader()
		}
		refused := g.decide(r, told, func(w http.ResponseWriter, guard func(http.Handler) http.Handler) {
			guard(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				g.stripped(req.Header())
				answer, err = next(r.Context(), req)
			})).ServeHTTP(w, r)
		})
		if refused != nil {
			return nil, refused
		}
		return answer, err
	}
}

// WrapStreamingClient implements [connect.Interceptor]: a client's calls pass.
func (g *Guard) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements [connect.Interceptor]. A stream ends within a second when its token expires or is revoked:
// the handler's context ends, what it receives or sends next fails, and whatever error it returns the client gets the refusal. A
// message that it sent before may still be on its way. Over HTTP/1.1, where the request's body must end before the answer, the
// refusal is sent with the client's next bytes.
func (g *Guard) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(call context.Context, conn connect.StreamingHandlerConn) (err error) {
		r := request(call, http.MethodPost, conn.Spec(), conn.Peer(), conn.RequestHeader())
		refused := g.decide(r, conn.ResponseHeader(), func(w http.ResponseWriter, guard func(http.Handler) http.Handler) {
			guard(g.auth.Watch(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				g.stripped(conn.RequestHeader())
				token := r.Context()
				err = next(token, &stream{StreamingHandlerConn: conn, call: call, token: token})
				if ended := rpc.Ended(call, token); err != nil && ended != nil {
					err = g.refuse(r, conn.ResponseHeader(), ended)
				}
			}))).ServeHTTP(w, r)
		})
		if refused != nil {
			return refused
		}
		return err
	}
}

// Error is the *connect.Error by which the guard refuses for err, for handlers that decide more by themselves: with
// [apitoken.Token.Check], or by a call of the service. An error that is not apitoken's is connect.CodeInternal and tells
// nothing of its text; nil is nil.
func (g *Guard) Error(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if call, ok := connect.CallInfoForHandlerContext(ctx); ok {
		return g.refuse(request(ctx, call.HTTPMethod(), call.Spec(), call.Peer(), call.RequestHeader()), call.ResponseHeader(), err)
	}
	return g.refuse(request(ctx, http.MethodPost, connect.Spec{}, connect.Peer{}, http.Header{}), http.Header{}, err)
}

func (g *Guard) refuse(r *http.Request, told http.Header, err error) error {
	var a rpc.Answer
	g.auth.Error(&a, r, err)
	return refusal(&a, told)
}

// decide runs call with the guard of r's procedure. Its error is the refusal, with headers in told.
func (g *Guard) decide(r *http.Request, told http.Header, call func(http.ResponseWriter, func(http.Handler) http.Handler)) error {
	needs, ok := g.methods[r.URL.Path]
	if !ok {
		return g.refuse(r, told, &apitoken.Error{Code: apitoken.ErrDenied, Detail: "Options.Methods does not name " + r.URL.Path})
	}
	var a rpc.Answer
	passed := false
	call(&a, func(next http.Handler) http.Handler {
		return g.auth.Guard(needs)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			passed = true
			next.ServeHTTP(w, r)
		}))
	})
	if passed {
		return nil
	}
	return refusal(&a, told)
}

// request is a call as the HTTP request that it is.
func request(ctx context.Context, method string, spec connect.Spec, peer connect.Peer, header http.Header) *http.Request {
	r := rpc.NewRequest(ctx, method, spec.Procedure, peer.Addr, header)
	if peer.Query.Has("access_token") { // of a GET, whose query is the message too
		r.URL.RawQuery = "access_token="
	}
	r.TLS, _ = ctx.Value(connectionKey{}).(*tls.ConnectionState)
	return r
}

// stripped takes the credential out of a call's headers, if handlers are not to see it.
func (g *Guard) stripped(h http.Header) {
	for _, name := range g.strip {
		h.Del(name)
	}
}

// refusal is a as Connect's error. Its headers go to told and not to the error's metadata: in gRPC that is sent as trailers, where
// no challenge may stand (RFC 9110 §6.5.1).
func refusal(a *rpc.Answer, told http.Header) error {
	r := a.Refusal()
	maps.Copy(told, r.Header)
	err := connect.NewError(connect.Code(r.Code), errors.New(r.Message))
	info := &errdetails.ErrorInfo{Reason: r.Reason, Domain: rpc.Domain}
	if r.Scope != "" {
		info.Metadata = map[string]string{"scope": r.Scope}
	}
	details := []proto.Message{info}
	if r.Retry > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(r.Retry)})
	}
	for _, m := range details {
		if d, failed := connect.NewErrorDetail(m); failed == nil {
			err.AddDetail(d)
		}
	}
	return err
}

// stream is a connection that ends with its token.
type stream struct {
	connect.StreamingHandlerConn
	call, token context.Context
}

func (s *stream) Receive(m any) error {
	return rpc.Receive(s.call, s.token, func() error { return s.StreamingHandlerConn.Receive(m) })
}

func (s *stream) Send(m any) error {
	if err := rpc.Ended(s.call, s.token); err != nil {
		return err
	}
	return s.StreamingHandlerConn.Send(m)
}
