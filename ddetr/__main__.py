from ddetr.cli import main

main()
