module github.com/apitoken-go/apitoken/connectauth

go 1.25.0

replace github.com/apitoken-go/apitoken => ..

require (
	connectrpc.com/connect v1.20.0
	github.com/apitoken-go/apitoken v0.0.0-00010101000000-000000000000
	github.com/stretchr/testify v1.12.1
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260414002931-afd174a4e478
	google.golang.org/protobuf v1.36.11
)

require (
	github.com/go-jose/go-jose/v4 v4.1.9 // indirect
	github.com/golang-jwt/jwt/v5 v5.3.1 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
)
