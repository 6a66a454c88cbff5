package connectauth_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/connectauth"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// A procedure that needs a scope, and a client with a token and without. Generated handlers take the guard in the same way.
func ExampleNew() {
	ctx := context.Background()
	svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true})
	if err != nil {
		log.Fatal(err)
	}
	defer svc.Close()

	const procedure = "/greet.v1.Greeter/Greet"
	guard := connectauth.New(svc, connectauth.Options{Methods: map[string]apitoken.Requirement{procedure: apitoken.AllOf("greetings")}})
	greet := func(ctx context.Context, _ *connect.Request[emptypb.Empty]) (*connect.Response[wrapperspb.StringValue], error) {
		return connect.NewResponse(wrapperspb.String("Hello, " + apitoken.FromContext(ctx).Subject())), nil
	}
	mux := http.NewServeMux()
	mux.Handle(procedure, connect.NewUnaryHandler(procedure, greet, connect.WithInterceptors(guard)))
	server := httptest.NewServer(mux)
	defer server.Close()

	client := connect.NewClient[emptypb.Empty, wrapperspb.StringValue](server.Client(), server.URL+procedure)
	request := connect.NewRequest(&emptypb.Empty{})
	_, err = client.CallUnary(ctx, request)
	fmt.Println(connect.CodeOf(err))

	issued, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"greetings"}})
	if err != nil {
		log.Fatal(err)
	}
	request.Header().Set("Authorization", "Bearer "+issued.Access.Reveal())
	answer, err := client.CallUnary(ctx, request)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Msg.Value)
	// Output:
	// unauthenticated
	// Hello, alice
}
