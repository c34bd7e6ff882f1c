"""The words of the demo corpus, as tables that a speaker of German can check at a glance.

Cells are parted by `|` or stand on lines of their own; `_` stands for a space. `lexicon` reads them.
"""

# english, plural, german, plural, gender; a trailing w marks the weak declension.
COUNT_NOUN_TABLES = {
    "person": """
        man men Mann Männer m           | woman women Frau Frauen f
        child children Kind Kinder n    | boy boys Junge Jungen m w
        girl girls Mädchen Mädchen n    | teacher teachers Lehrer Lehrer m
        doctor doctors Arzt Ärzte m     | nurse nurses Krankenschwester Krankenschwestern f
        neighbour neighbours Nachbar Nachbarn m w | student students Student Studenten m w
        friend friends Freund Freunde m | guest guests Gast Gäste m
        mother mothers Mutter Mütter f  | father fathers Vater Väter m
        brother brothers Bruder Brüder m | sister sisters Schwester Schwestern f
        uncle uncles Onkel Onkel m      | aunt aunts Tante Tanten f
        grandmother grandmothers Großmutter Großmütter f
        son sons Sohn Söhne m           | daughter daughters Tochter Töchter f
        colleague colleagues Kollege Kollegen m w | baker bakers Bäcker Bäcker m
        farmer farmers Bauer Bauern m w | queen queens Königin Königinnen f
        policeman policemen Polizist Polizisten m w | waiter waiters Kellner Kellner m""",
    "animal": """
        dog dogs Hund Hunde m           | cat cats Katze Katzen f
        horse horses Pferd Pferde n     | bird birds Vogel Vögel m
        cow cows Kuh Kühe f             | rabbit rabbits Kaninchen Kaninchen n""",
    "text": """
        book books Buch Bücher n        | newspaper newspapers Zeitung Zeitungen f
        letter letters Brief Briefe m   | poem poems Gedicht Gedichte n
        story stories Geschichte Geschichten f | novel novels Roman Romane m""",
    "food": """
        apple apples Apfel Äpfel m      | cake cakes Kuchen Kuchen m
        egg eggs Ei Eier n              | potato potatoes Kartoffel Kartoffeln f
        pear pears Birne Birnen f       | roll rolls Brötchen Brötchen n
        sausage sausages Wurst Würste f""",
    "device": """
        lamp lamps Lampe Lampen f       | radio radios Radio Radios n
        computer computers Computer Computer m | television televisions Fernseher Fernseher m
        washing_machine washing_machines Waschmaschine Waschmaschinen f""",
    "vehicle": """
        car cars Auto Autos n           | bicycle bicycles Fahrrad Fahrräder n
        boat boats Boot Boote n         | motorbike motorbikes Motorrad Motorräder n""",
    "opening": """
        door doors Tür Türen f          | window windows Fenster Fenster n
        cupboard cupboards Schrank Schränke m | drawer drawers Schublade Schubladen f""",
    "parcel": """
        suitcase suitcases Koffer Koffer m | box boxes Kiste Kisten f
        gift gifts Geschenk Geschenke n | bag bags Tasche Taschen f""",
    "clothing": """
        coat coats Mantel Mäntel m      | dress dresses Kleid Kleider n
        shirt shirts Hemd Hemden n      | skirt skirts Rock Röcke m
        hat hats Hut Hüte m             | jacket jackets Jacke Jacken f
        scarf scarves Schal Schals m""",
    "thing": """
        key keys Schlüssel Schlüssel m  | ticket tickets Fahrkarte Fahrkarten f
        table tables Tisch Tische m     | chair chairs Stuhl Stühle m
        picture pictures Bild Bilder n  | flower flowers Blume Blumen f
        umbrella umbrellas Regenschirm Regenschirme m | knife knives Messer Messer n
        plate plates Teller Teller m    | glass glasses Glas Gläser n
        bottle bottles Flasche Flaschen f | clock clocks Uhr Uhren f
        map maps Landkarte Landkarten f | pencil pencils Bleistift Bleistifte m""",
    "transport": """
        train trains Zug Züge m         | bus buses Bus Busse m
        ship ships Schiff Schiffe n     | ferry ferries Fähre Fähren f""",
}

MASS_NOUN_TABLES = {
    "meal": "bread Brot n | cheese Käse m | soup Suppe f | rice Reis m | meat Fleisch n",
    "drink": "water Wasser n | milk Milch f | tea Tee m | coffee Kaffee m | wine Wein m | juice Saft m",
}

# english, german, gender, english preposition, german where, german where to.
PLACE_TABLE = """
    kitchen Küche f in in in         | garden Garten m in in in
    office Büro n in in in           | school Schule f at in zu
    station Bahnhof m at an zu       | airport Flughafen m at an zu
    market Markt m at auf auf        | cinema Kino n in in in
    theatre Theater n in in in       | library Bibliothek f in in in
    hotel Hotel n in in in           | restaurant Restaurant n in in in
    hospital Krankenhaus n in in in  | village Dorf n in in in
    city Stadt f in in in            | park Park m in in in
    church Kirche f in in in         | museum Museum n in in in
    beach Strand m on an an          | lake See m at an an
    bridge Brücke f on auf auf       | forest Wald m in in in
    bakery Bäckerei f in in in       | harbour Hafen m in in zu"""

CITIES = (
    ("Berlin", "Berlin"), ("Hamburg", "Hamburg"), ("Vienna", "Wien"), ("Munich", "München"),
    ("Cologne", "Köln"), ("Zurich", "Zürich"), ("Geneva", "Genf"), ("Rome", "Rom"),
    ("Prague", "Prag"), ("Warsaw", "Warschau"), ("Lisbon", "Lissabon"), ("Nuremberg", "Nürnberg"),
)  # fmt: skip

NAMES = ("Anna", "Maria", "Julia", "Eva", "Peter", "Paul", "Martin", "Oskar")

# english; past and participle; german with + after a separable prefix; changed stem; participle;
# h(aben) or s(ein); frame; objects, or preposition and objects.
# `english|particle`, `english tail`; `sich` is reflexive; ! is stative.
VERB_TABLE = """
    buy; bought bought; kaufen; -; gekauft; h; a; thing text food meal drink device vehicle clothing animal
    sell; sold sold; verkaufen; -; verkauft; h; a; thing text food meal device vehicle clothing animal
    see!; saw seen; sehen; sieh; gesehen; h; a; person animal thing text vehicle clothing opening
    find; found found; finden; -; gefunden; h; a; thing text clothing animal parcel
    look for; looked looked; suchen; -; gesucht; h; a; person animal thing text clothing parcel
    need!; needed needed; brauchen; -; gebraucht; h; a; thing text device vehicle clothing
    love!; loved loved; lieben; -; geliebt; h; a; person animal
    visit; visited visited; besuchen; -; besucht; h; a; person
    know!; knew known; kennen; -; gekannt; h; a; person
    meet; met met; treffen; triff; getroffen; h; a; person
    ask; asked asked; fragen; -; gefragt; h; a; person
    invite; invited invited; ein+laden; läd; eingeladen; h; a; person
    call; called called; an+rufen; -; angerufen; h; a; person
    pick|up; picked picked; ab+holen; -; abgeholt; h; a; person parcel
    wake|up; woke woken; auf+wecken; -; aufgeweckt; h; a; person animal
    understand!; understood understood; verstehen; -; verstanden; h; a; person text
    hear!; heard heard; hören; -; gehört; h; a; person animal
    read; read read; lesen; lies; gelesen; h; a; text
    write; wrote written; schreiben; -; geschrieben; h; a; text
    translate; translated translated; übersetzen; -; übersetzt; h; a; text
    borrow; borrowed borrowed; aus+leihen; -; ausgeliehen; h; a; text vehicle
    eat; ate eaten; essen; iss; gegessen; h; a; food meal
    order; ordered ordered; bestellen; -; bestellt; h; a; food meal drink
    taste; tasted tasted; probieren; -; probiert; h; a; food meal drink
    drink; drank drunk; trinken; -; getrunken; h; a; drink
    repair; repaired repaired; reparieren; -; repariert; h; a; device vehicle
    turn|on; turned turned; ein+schalten; -; eingeschaltet; h; a; device
    turn|off; turned turned; aus+schalten; -; ausgeschaltet; h; a; device
    open; opened opened; auf+machen; -; aufgemacht; h; a; opening parcel
    close; closed closed; zu+machen; -; zugemacht; h; a; opening parcel
    clean; cleaned cleaned; putzen; -; geputzt; h; a; opening vehicle
    wear; wore worn; tragen; träg; getragen; h; a; clothing
    put|on; put put; an+ziehen; -; angezogen; h; a; clothing
    take|off; took taken; aus+ziehen; -; ausgezogen; h; a; clothing
    wash; washed washed; waschen; wäsch; gewaschen; h; a; clothing vehicle
    paint; painted painted; malen; -; gemalt; h; a; animal
    photograph; photographed photographed; fotografieren; -; fotografiert; h; a; person animal vehicle
    forget; forgot forgotten; vergessen; vergiss; vergessen; h; a; thing text clothing parcel
    lose; lost lost; verlieren; -; verloren; h; a; thing clothing text
    bring|along; brought brought; mit+bringen; -; mitgebracht; h; a; thing text food clothing parcel
    bring|back; brought brought; zurück+bringen; -; zurückgebracht; h; a; thing text parcel
    throw|away; threw thrown; weg+werfen; wirf; weggeworfen; h; a; thing text clothing
    unpack; unpacked unpacked; aus+packen; -; ausgepackt; h; a; parcel
    carry; carried carried; tragen; träg; getragen; h; a; parcel animal
    hide; hid hidden; verstecken; -; versteckt; h; a; thing text parcel
    have!; had had; haben; -; gehabt; h; a; thing text vehicle device animal clothing
    help; helped helped; helfen; hilf; geholfen; h; d; person
    thank; thanked thanked; danken; -; gedankt; h; d; person
    answer; answered answered; antworten; -; geantwortet; h; d; person
    follow; followed followed; folgen; -; gefolgt; s; d; person animal
    trust!; trusted trusted; vertrauen; -; vertraut; h; d; person
    congratulate; congratulated congratulated; gratulieren; -; gratuliert; h; d; person
    listen to; listened listened; zu+hören; -; zugehört; h; d; person
    give; gave given; geben; gib; gegeben; h; b; thing text food clothing parcel
    show; showed shown; zeigen; -; gezeigt; h; b; thing text vehicle clothing animal
    send; sent sent; schicken; -; geschickt; h; b; text thing parcel
    lend; lent lent; leihen; -; geliehen; h; b; thing text vehicle clothing
    bring; brought brought; bringen; -; gebracht; h; b; thing text food clothing parcel
    wait for; waited waited; warten; -; gewartet; h; p auf acc; person transport
    think of; thought thought; denken; -; gedacht; h; p an acc; person
    talk to; talked talked; sprechen; sprich; gesprochen; h; p mit dat; person
    play with; played played; spielen; -; gespielt; h; p mit dat; person animal
    dream of; dreamed dreamed; träumen; -; geträumt; h; p von dat; person animal vehicle
    laugh at; laughed laughed; lachen; -; gelacht; h; p über acc; person text
    work for; worked worked; arbeiten; -; gearbeitet; h; p für acc; person
    remember!; remembered remembered; sich erinnern; -; erinnert; h; p an acc; person text
    look forward to; looked looked; sich freuen; -; gefreut; h; p auf acc; food parcel text
    sleep; slept slept; schlafen; schläf; geschlafen; h; i; place
    work; worked worked; arbeiten; -; gearbeitet; h; i; place
    sing; sang sung; singen; -; gesungen; h; i; place
    dance; danced danced; tanzen; -; getanzt; h; i; place
    wait; waited waited; warten; -; gewartet; h; i; place
    stay; stayed stayed; bleiben; -; geblieben; s; i; place
    rest; rested rested; sich aus+ruhen; -; ausgeruht; h; i; place
    have breakfast; had had; frühstücken; -; gefrühstückt; h; i; place
    go shopping; went gone; ein+kaufen; -; eingekauft; h; i; city
    tidy|up; tidied tidied; auf+räumen; -; aufgeräumt; h; i; place
    live!; lived lived; wohnen; -; gewohnt; h; i; city
    arrive; arrived arrived; an+kommen; -; angekommen; s; i; city place
    get|up; got got; auf+stehen; -; aufgestanden; s; i; -
    fall asleep; fell fallen; ein+schlafen; schläf; eingeschlafen; s; i; -
    come|back; came come; zurück+kommen; -; zurückgekommen; s; i; -
    go|out; went gone; aus+gehen; -; ausgegangen; s; i; -
    watch television; watched watched; fern+sehen; sieh; ferngesehen; h; i; -
    hurry; hurried hurried; sich beeilen; -; beeilt; h; i; -
    laugh; laughed laughed; lachen; -; gelacht; h; i; -
    swim; swam swum; schwimmen; -; geschwommen; s; i; -
    go; went gone; gehen; -; gegangen; s; g; place
    run; ran run; laufen; läuf; gelaufen; s; g; place
    drive; drove driven; fahren; fähr; gefahren; s; g; place city
    travel; travelled travelled; reisen; -; gereist; s; g; city
    fly; flew flown; fliegen; -; geflogen; s; g; city"""

DEPARTURE_TABLE = """
    leave; left left; ab+fahren; fähr; abgefahren; s; i; -
    arrive; arrived arrived; an+kommen; -; angekommen; s; i; -"""

# english; german; stem where it differs; comparatives.
ADJECTIVE_TABLES = {
    "person": """
        young; jung; -; younger; jünger       | old; alt; -; older; älter
        tall; groß; -; taller; größer         | friendly; freundlich; -; friendlier; freundlicher
        tired; müde; müd;;                    | strong; stark; -; stronger; stärker
        clever; klug; -; cleverer; klüger     | famous; berühmt; -; more famous; berühmter
        sick; krank; -;;                      | happy; glücklich; -; happier; glücklicher
        rich; reich; -; richer; reicher       | poor; arm; -; poorer; ärmer
        patient; geduldig; -; more patient; geduldiger | hungry; hungrig; -; hungrier; hungriger""",
    "thing": """
        big; groß; -; bigger; größer          | small; klein; -; smaller; kleiner
        old; alt; -; older; älter             | new; neu; -; newer; neuer
        beautiful; schön; -; more beautiful; schöner | expensive; teuer; teur; more expensive; teurer
        cheap; billig; -; cheaper; billiger   | heavy; schwer; -; heavier; schwerer
        red; rot; -;;       | blue; blau; -;;         | green; grün; -;;
        yellow; gelb; -;;   | black; schwarz; -;;     | white; weiß; -;;""",
    "animal": """
        big; groß; -; bigger; größer          | small; klein; -; smaller; kleiner
        old; alt; -; older; älter             | young; jung; -; younger; jünger
        brown; braun; -;;   | black; schwarz; -;;     | white; weiß; -;;
        beautiful; schön; -; more beautiful; schöner""",
    "text": """
        long; lang; -; longer; länger         | short; kurz; -; shorter; kürzer
        old; alt; -; older; älter             | new; neu; -; newer; neuer
        famous; berühmt; -; more famous; berühmter
        beautiful; schön; -; more beautiful; schöner""",
    "food": """
        fresh; frisch; -; fresher; frischer   | good; gut; -; better; besser
        cheap; billig; -; cheaper; billiger   | cold; kalt; -; colder; kälter
        expensive; teuer; teur; more expensive; teurer | warm; warm; -; warmer; wärmer""",
    "place": """
        big; groß; -; bigger; größer          | small; klein; -; smaller; kleiner
        old; alt; -; older; älter             | new; neu; -; newer; neuer
        quiet; ruhig; -; quieter; ruhiger     | beautiful; schön; -; more beautiful; schöner""",
}
