// Package grpcauth guards gRPC servers that are made with google.golang.org/grpc.
//
//	guard := grpcauth.New(svc, grpcauth.Options{Methods: map[string]apitoken.Requirement{
//		"/orders.v1.Orders/List":       apitoken.AllOf("orders:read"),
//		"/orders.v1.Orders/Watch":      apitoken.AllOf("orders:read"),
//		"/grpc.health.v1.Health/Check": apitoken.Public(),
//	}})
//	server := grpc.NewServer(guard.ServerOptions()...)
//
// Clients send what they send over HTTP: the metadata authorization, and dpop beside a token that is bound to a key. The decision
// is [httpauth.Auth]'s, about the HTTP request that a call is: POST to the method's path. In a handler [apitoken.FromContext] is the
// caller.
//
// A refusal is a status with google.rpc.ErrorInfo, and with google.rpc.RetryInfo where a retry may help. docs/adapters.md has the
// table of codes and reasons. The response's header has
// www-authenticate and dpop-nonce where HTTP has them.
package grpcauth

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/internal/rpc"
)

// Options say what is guarded.
type Options struct {
	// Methods says what each method requires, by its full name: "/package.Service/Method". A method that is not named is
	// refused, whoever calls it. For one that needs no token, say [apitoken.Public].
	Methods map[string]apitoken.Requirement
	// HTTP is passed on to [httpauth.New]. With BaseURL, such as https://api.example.com, DPoP proofs are taken: htm is POST, and
	// htu is BaseURL and the method's full name. Address, Certificate, Sources and OnRefuse see a call as a request whose headers are
	// its metadata. Without Certificate it is the one of the connection, where [credentials.NewTLS] made it. StripCredential takes
	// the credential out of the incoming metadata.
	HTTP httpauth.Options
}

// Guard guards a server. Make it with New. Its methods may be called from several goroutines.
type Guard struct {
	methods map[string]apitoken.Requirement
	auth    *httpauth.Auth
	strip   []string // metadata that handlers do not see
}

// New returns a Guard that asks v. It panics on Options that cannot be, as httpauth.New does: a server cannot run without.
func New(v apitoken.Validator, o Options) *Guard {
	for method := range o.Methods {
		if !rpc.IsMethod(method) {
			panic(fmt.Sprintf("grpcauth: Options.Methods: %q is no full name of a method, such as /orders.v1.Orders/List", method))
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

// ServerOptions are Unary and Stream for [grpc.NewServer], in their place among other chained interceptors. A server with one of
// the two leaves the methods of the other kind open.
func (g *Guard) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(g.Unary), grpc.ChainStreamInterceptor(g.Stream)}
}

// Check compares the table with what the server offers, for the host's start: a method that the table does not name could never be
// called, and a row for one that there is not is a misspelled name. The error lists them. Register the services first.
func (g *Guard) Check(s interface {
	GetServiceInfo() map[string]grpc.ServiceInfo
}) error {
	offered := map[string]bool{}
	var errs []error
	for service, info := range s.GetServiceInfo() {
		for _, m := range info.Methods {
			full := "/" + service + "/" + m.Name
			offered[full] = true
			if _, ok := g.methods[full]; !ok {
				errs = append(errs, fmt.Errorf("the server has %s, Options.Methods does not", full))
			}
		}
	}
	for method := range g.methods {
		if !offered[method] {
			errs = append(errs, fmt.Errorf("Options.Methods has %s, the server does not", method))
		}
	}
	if len(errs) == 0 {
		return nil
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return fmt.Errorf("grpcauth: %w", errors.Join(errs...))
}

// Unary is a [grpc.UnaryServerInterceptor].
func (g *Guard) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	refused := g.decide(ctx, info.FullMethod, func(r *http.Request, guard func(http.Handler) http.Handler, w http.ResponseWriter) {
		guard(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			resp, err = handler(g.stripped(r.Context()), req)
		})).ServeHTTP(w, r)
	})
	if refused != nil {
		return nil, refused
	}
	return resp, err
}

// Stream is a [grpc.StreamServerInterceptor]. A stream ends within a second when its token expires or is revoked: the handler's
// context ends, what it receives or sends next fails, and whatever error it returns the client gets the refusal. A message
// that it sent before may still be on its way.
func (g *Guard) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	call := ss.Context()
	refused := g.decide(call, info.FullMethod, func(r *http.Request, guard func(http.Handler) http.Handler, w http.ResponseWriter) {
		guard(g.auth.Watch(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			token := r.Context()
			err = handler(srv, &stream{ServerStream: ss, ctx: g.stripped(token), call: call, token: token})
			if ended := rpc.Ended(call, token); err != nil && ended != nil {
				err = g.Error(token, ended)
			}
		}))).ServeHTTP(w, r)
	})
	if refused != nil {
		return refused
	}
	return err
}

// Error is the status by which Unary and Stream refuse for err, for handlers that decide more by themselves: with
// [apitoken.Token.Check], or by a call of the service. It adds to the header of ctx's call. An error that is not apitoken's is
// codes.Internal and tells nothing of its text; nil is nil.
func (g *Guard) Error(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var a rpc.Answer
	method, _ := grpc.Method(ctx)
	g.auth.Error(&a, g.request(ctx, method), err)
	return refusal(ctx, &a)
}

// decide runs call with the request that ctx's call is, and with the guard of its method. Its error is the refusal.
func (g *Guard) decide(ctx context.Context, method string, call func(*http.Request, func(http.Handler) http.Handler, http.ResponseWriter)) error {
	needs, ok := g.methods[method]
	if !ok {
		return g.Error(ctx, &apitoken.Error{Code: apitoken.ErrDenied, Detail: "Options.Methods does not name " + method})
	}
	var a rpc.Answer
	passed := false
	call(g.request(ctx, method), func(next http.Handler) http.Handler {
		return g.auth.Guard(needs)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			passed = true
			next.ServeHTTP(w, r)
		}))
	}, &a)
	if passed {
		return nil
	}
	return refusal(ctx, &a)
}

// request is a call as the HTTP request that it is.
func (g *Guard) request(ctx context.Context, method string) *http.Request {
	md, _ := metadata.FromIncomingContext(ctx)
	remote := ""
	p, ok := peer.FromContext(ctx)
	if ok && p.Addr != nil {
		remote = p.Addr.String()
	}
	r := rpc.NewRequest(ctx, http.MethodPost, method, remote, rpc.Header(md))
	if ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			r.TLS = &info.State
		}
	}
	return r
}

// stripped is ctx without the credential in its metadata, if handlers are not to see it.
func (g *Guard) stripped(ctx context.Context) context.Context {
	if len(g.strip) == 0 {
		return ctx
	}
	md, _ := metadata.FromIncomingContext(ctx) // a copy
	for _, name := range g.strip {
		md.Delete(name)
	}
	return metadata.NewIncomingContext(ctx, md)
}

// refusal is the status of a, whose headers go to the header of ctx's call: no challenge may stand in a trailer (RFC 9110 §6.5.1).
func refusal(ctx context.Context, a *rpc.Answer) error {
	r := a.Refusal()
	header := metadata.MD{}
	for name, values := range r.Header {
		header.Append(name, values...)
	}
	if len(header) > 0 {
		_ = grpc.SetHeader(ctx, header) // fails for a stream that has sent its header, and for a ctx of no call
	}
	info := &errdetails.ErrorInfo{Reason: r.Reason, Domain: rpc.Domain}
	if r.Scope != "" {
		info.Metadata = map[string]string{"scope": r.Scope}
	}
	details := []protoadapt.MessageV1{protoadapt.MessageV1Of(info)}
	if r.Retry > 0 {
		details = append(details, protoadapt.MessageV1Of(&errdetails.RetryInfo{RetryDelay: durationpb.New(r.Retry)}))
	}
	st := status.New(codes.Code(r.Code), r.Message)
	if with, err := st.WithDetails(details...); err == nil {
		st = with
	}
	return st.Err()
}

// stream is a ServerStream that ends with its token.
type stream struct {
	grpc.ServerStream
	ctx         context.Context // the handler's
	call, token context.Context
}

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) RecvMsg(m any) error {
	return rpc.Receive(s.call, s.token, func() error { return s.ServerStream.RecvMsg(m) })
}

func (s *stream) SendMsg(m any) error {
	if err := rpc.Ended(s.call, s.token); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(m)
}
