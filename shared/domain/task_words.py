"""The weights by which `task_type.py` tells what a prompt wants. Written, not edited.

`python -m tests.bench.classifying --fit FILE` learned it from the hand-set weights of
`tests/bench/task_vocabulary.py` and labelled public prompts. A term and its tenths for code,
reasoning, general, chat and extraction. `^` marks how a text begins; `*` is no word but a sign,
see `task_type.signs`.
"""

from collections.abc import Mapping

_TABLE = """\
*always=-9,8,28,-1,-11 *brief=0,0,0,50,0 *long=0,-1,-4,-1,11 *number=7,8,-11,-6,8
*quiz=-25,-6,28,-42,-24 *quiz_number=-7,-1,11,-1,-6 ^actas=0,-6,0,47,0 ^asa=0,-1,-2,44,0
^asan=0,0,0,40,0 ^assumetherole=0,0,0,40,0 ^class=40,0,0,0,0 ^compose=0,0,0,40,0 ^craft=0,0,0,40,0
^def=55,-10,-2,-1,-2 ^discuss=0,0,25,0,0 ^draft=0,0,0,41,0 ^explain=0,0,26,0,0
^fromtyping=40,0,0,0,0 ^goodmorning=0,0,0,40,0 ^hello=0,0,0,40,0 ^hithere=0,0,0,40,0
^howareyou=0,0,0,40,0 ^howcan=0,-1,28,-1,0 ^howdo=0,0,26,0,0 ^howdoes=0,0,25,0,0
^imagine=0,2,0,38,0 ^import=41,-1,0,0,0 ^letsplay=0,0,0,40,0 ^nowyouare=0,0,0,40,0
^pictureyourself=0,-1,-1,43,0 ^pleaseassume=0,0,0,40,0 ^pleasetakeon=0,0,0,40,0
^pretend=0,0,0,40,0 ^rewrite=0,0,0,40,0 ^supposeyou=0,-2,0,41,0 ^takeonthe=0,0,0,40,0
^tellmea=0,0,0,40,0 ^thanks=0,0,0,40,0 ^thankyou=0,0,0,40,0 ^translate=0,0,0,40,0
^whatare=0,0,26,0,0 ^whatif=0,-1,28,-1,0 ^whatisthe=0,0,25,0,0 ^whendid=0,0,25,0,0
^whereis=0,0,25,0,0 ^whichcountr=0,0,25,0,0 ^whois=0,0,25,0,0 ^whowas=0,0,25,0,0
^whydo=0,-1,26,0,0 ^whydoes=0,0,25,0,0 ^whymight=0,-2,28,-1,0 ^writea=0,0,0,41,0
^writean=0,0,0,40,0 ^youarea=0,0,0,40,0 ^youarean=0,0,0,40,0 abelian=0,35,0,0,0
acceleration=0,33,2,0,0 accordingto=0,-1,26,0,0 actas=0,-6,0,47,0 advantages=0,5,20,0,0
advice=0,0,0,10,0 afunction=40,1,-1,0,0 algorithm=25,0,0,0,0 altogether=0,20,0,0,0
americans=0,0,25,0,0 analogy=0,23,-2,0,0 angle=0,22,-1,0,0 announcement=0,0,0,25,0
another=0,12,-4,0,0 argument=0,25,-5,0,0 armature=0,20,0,0,0 array=26,-1,0,0,0 arrays=26,-1,0,0,0
asajson=0,0,0,0,45 asapirate=0,0,0,25,0 asasuperhero=0,0,0,25,0 ascending=10,0,0,0,0
ascsv=0,0,0,0,45 asmany=0,35,0,0,0 assumetherole=0,0,0,40,0 atoms=0,20,0,0,0 attack=0,-1,26,0,0
attacker=0,-1,26,0,0 audience=0,0,0,10,0 autocorrelation=0,35,0,0,0 average=0,17,4,0,0
axiom=0,20,0,0,0 bayesian=0,35,0,0,0 because=0,-1,11,0,0 benefits=0,0,10,0,0
bestdescribes=0,0,25,0,0 binarytree=25,0,0,0,0 birthdaycard=0,0,0,40,0 blog=0,0,0,25,0
blogpost=0,0,0,40,0 boolean=25,0,0,0,0 boson=0,20,0,0,0 bought=-2,24,-1,0,-1 brain=0,-1,26,0,0
brainstorm=0,0,0,25,0 brothers=0,20,0,0,0 calculate=-1,37,0,0,0 called=0,-6,16,0,0
capacitance=0,35,0,0,0 capacitor=0,36,-1,0,0 caption=0,0,0,25,0 captivating=0,0,0,25,0
catchy=0,0,0,40,0 categories=0,-4,-3,0,27 categorize=0,0,0,0,20 causesof=0,0,25,0,0
cells=0,0,25,0,0 cents=0,17,3,0,0 century=0,-1,19,0,7 chance=0,20,0,0,0 character=2,-6,4,11,0
charge=0,21,-1,0,0 children=0,0,25,0,0 circle=0,20,0,0,0 circuit=0,20,0,0,0 class=9,-3,6,0,-1
classifier=0,20,0,0,0 classify=0,0,0,0,20 classifyeach=0,0,0,0,45 clinical=0,0,25,0,0
closedloop=0,40,-5,0,0 coach=0,0,0,25,0 codebase=40,0,0,0,0 coins=0,20,0,0,0 colonist=0,0,0,25,0
columns=0,0,0,0,20 command=10,0,0,0,0 commentator=0,-1,-2,28,0 commit=25,4,-3,0,0
compare=1,-1,10,0,0 compelling=0,-3,3,25,0 compile=40,0,0,0,0 compilererror=40,0,0,0,0
compose=0,0,0,25,0 conclusion=0,24,-4,1,0 conditional=0,20,0,0,0 confidenceinterval=0,35,0,0,0
conjunction=0,20,0,0,0 const=24,-2,3,0,0 constitution=0,0,25,0,0 consumers=0,0,25,0,0
contradiction=0,20,0,0,0 convection=0,24,-3,0,0 converges=0,35,0,0,0 conversation=0,-1,0,11,0
convex=0,20,0,0,0 costs=0,21,0,0,0 counthow=0,0,0,0,20 countries=0,0,25,0,0 country=0,0,25,0,0
court=0,0,25,0,0 coverletter=0,0,0,40,0 cprogram=41,0,0,0,0 craft=0,0,0,25,0 creative=0,0,-1,26,0
csvformat=0,0,0,0,45 culture=0,0,26,0,0 current=0,20,2,-2,0 customerreviews=0,0,0,0,20
database=10,0,0,0,0 dataframe=25,0,0,0,0 datastructure=26,0,-1,0,0 debug=25,0,0,0,0
decimal=0,20,0,0,0 deduce=0,20,0,0,0 derivative=4,31,0,0,0 descending=10,0,0,0,0
describe=-1,-3,12,13,-1 describeyour=0,0,0,25,0 descriptive=0,0,0,26,0 dialogue=0,0,0,25,0
diameter=0,20,0,0,0 dice=0,21,-1,0,0 dielectric=0,35,0,0,0 difference=1,19,1,-1,0
differencebetween=1,-1,25,0,0 digits=0,20,0,0,0 dimension=0,20,0,0,0 diode=0,20,0,0,0
direction=0,19,2,0,0 discount=0,20,0,0,0 discuss=0,-1,4,0,7 disease=0,0,25,0,0
disjunction=0,20,0,0,0 distance=0,29,-8,0,0 divided=0,20,0,0,0 divisible=1,31,2,0,0
django=40,0,0,0,0 docker=40,0,0,0,0 dockerfile=40,0,0,0,0 dollars=0,20,0,0,0 draft=0,0,0,26,0
dynamicprogramming=25,0,0,0,0 earns=0,20,0,0,0 economic=0,-2,27,0,0 editthefollowing=0,-1,-1,26,0
effective=0,-1,11,0,0 eigenvalue=0,35,0,0,0 eigenvalues=0,35,0,0,0 electric=0,19,1,0,0
electron=0,35,0,0,0 electrons=0,35,0,0,0 element=11,3,-4,1,0 elements=10,-3,3,1,0
email=0,-1,-1,26,0 embody=0,0,0,41,0 employees=0,1,25,0,0 empty=10,0,0,0,0 encryption=0,0,25,0,0
endpoint=25,0,0,0,0 energy=0,23,-3,0,0 engaging=0,0,0,25,0 entities=0,0,0,0,20 entropy=0,20,0,0,0
equal=1,11,-3,0,0 equals=0,6,2,0,0 equation=0,29,1,5,0 equations=0,31,-2,7,0
equilibriumconstant=0,20,0,0,0 error=10,0,0,1,0 essay=0,-1,-1,26,0 estimate=0,33,2,0,0
estimator=0,35,0,0,0 ethical=0,0,25,0,0 evolution=0,-3,28,0,0 example=3,-10,12,5,0
exception=10,0,0,0,0 explain=0,-6,26,5,0 expression=0,20,0,0,0 extract=0,0,0,0,45
extractall=0,0,0,0,45 extractthe=0,0,0,0,45 factor=0,21,-1,0,0 factors=0,0,10,0,0
fairytale=0,0,0,40,0 fallacies=0,41,-6,0,0 fallacious=0,35,0,0,0 fallacy=0,37,-2,0,0
false=3,11,-4,-1,-1 faster=0,20,0,0,0 favorite=0,1,-1,10,-1 field=0,19,1,0,0 fields=0,-1,1,0,20
finite=1,18,1,0,0 first=-1,7,-2,6,-2 fiscal=0,0,25,0,0 float=11,-1,0,0,0 following=-3,2,0,1,10
followingdata=-1,-4,0,0,49 followinginformation=0,0,0,0,20 followingrecords=0,0,0,0,45
followingreviews=0,0,0,0,20 followingtext=0,0,0,0,20 force=0,23,-3,0,0 fraction=0,21,-1,0,0
frequency=0,21,-1,0,0 friend=0,0,0,10,0 fromthefollowingtext=0,0,0,0,45 fromthepassage=0,0,0,0,45
fromthetextbelow=0,0,0,0,45 fromtypingimport=40,0,0,0,0 function=24,0,1,0,0 functionf=0,20,0,0,0
functions=25,0,0,0,0 functionthat=40,0,0,0,0 functionto=40,0,0,0,0 galaxy=0,0,25,0,0
gallons=0,20,0,0,0 generator=0,20,0,0,0 genes=0,0,25,0,0 givena=11,1,-2,-1,0 gives=0,20,0,0,0
golang=40,0,0,0,0 goodmorning=0,0,0,40,0 government=0,0,25,0,0 gradientdescent=0,35,0,0,0
grammaticalerrors=0,-1,-1,26,0 graph=-1,18,-1,3,0 group=0,18,5,-2,0 haiku=0,0,0,40,0
hashmap=25,0,0,0,0 headline=0,0,0,40,0 hello=1,0,0,40,0 heteroscedasticity=0,35,0,0,0
history=-1,-3,25,-1,5 homomorphism=0,35,0,0,0 hormone=0,0,25,0,0 hours=0,21,0,0,0
howareyou=0,0,0,40,0 howcan=0,-1,13,-1,0 howdid=0,0,10,0,0 howdo=-1,-2,4,2,6 howdoes=0,-1,4,0,7
howfar=1,34,0,0,0 howfast=0,35,0,0,0 howheavy=0,35,0,0,0 howlong=0,36,0,0,0 howmany=-4,51,-6,-2,-4
howmuch=-2,37,3,-1,-2 howoften=0,35,0,0,0 howold=0,36,0,0,0 howtall=0,35,0,0,0
howwouldyou=0,0,0,40,0 html=40,0,0,0,0 human=0,0,25,0,0 hypothesis=0,16,4,0,0
identifythe=-1,0,-4,0,24 ifandonlyif=0,35,0,0,0 ifyouwerea=0,0,0,40,0 imagine=0,2,0,8,0
imagineyou=0,2,0,38,0 imagineyourself=0,0,0,40,0 impact=0,0,11,0,0 impedance=0,20,0,0,0
implement=26,0,0,0,0 implementafunction=40,0,0,0,0 implies=0,20,0,0,0 import=25,-1,0,0,0
important=0,0,10,0,0 incharacter=0,0,0,40,0 inches=0,20,0,0,0 index=11,-1,0,0,0
inductance=0,35,0,0,0 infer=0,20,0,0,0 inflation=0,0,25,0,0 injsonformat=0,0,0,0,45
input=9,-2,4,-1,0 inputstring=25,0,0,0,0 integer=12,-4,2,0,0 integers=12,-3,1,0,0
integral=0,35,0,0,0 interestrate=0,20,0,0,0 international=0,0,25,0,0
inthefollowingsentences=0,0,0,0,45 inthestyleof=0,0,0,40,0 intooneofthesecategories=0,0,0,0,45
intotal=0,35,0,0,0 intriguing=0,0,0,25,0 introduceyourself=0,0,0,25,0 invitation=0,0,0,25,0
inyourownwords=0,0,0,25,0 isanexampleof=0,0,25,0,0 isomorphic=0,35,0,0,0 isotope=0,20,0,0,0
iwantyoutoact=0,0,0,40,0 javascript=40,0,0,0,0 joules=0,20,0,0,0 json=0,0,0,0,20
jsonarray=0,0,0,0,45 jsonformat=0,0,0,0,45 jsonschema=25,0,0,0,0 jsonstring=0,0,0,0,45
kernel=0,20,0,0,0 keyvalue=0,0,0,0,45 knight=0,0,0,25,0 knownas=0,-2,27,0,0 kubernetes=40,0,0,0,0
labeleach=0,0,0,0,45 laser=0,20,0,0,0 learningrate=0,20,0,0,0 leftover=0,20,0,0,0 legal=0,0,25,0,0
length=11,16,3,0,0 letter=0,0,0,25,0 library=10,0,0,0,0 likelihood=0,20,0,0,0 limerick=0,0,0,40,0
linear=0,20,0,0,0 linkedlist=25,0,0,0,0 listint=40,0,0,0,0 listof=25,-3,3,0,0
listofallthe=0,0,0,0,45 lists=10,0,0,0,0 liststr=40,0,0,0,0 liters=0,20,0,0,0 logic=0,20,0,0,0
logical=0,19,1,0,0 logically=0,35,0,0,0 loop=10,5,-5,0,0 loveletter=0,0,0,40,0 lyrics=0,0,0,25,0
magnetic=0,17,3,0,0 management=0,0,25,0,0 marbles=0,20,0,0,0 marketing=0,1,25,0,0
matrix=0,35,0,0,0 maximumvalue=0,35,0,0,0 median=0,20,0,0,0 meters=0,20,0,0,0 method=10,3,-2,0,0
miles=0,20,0,0,0 minimumvalue=0,36,-1,0,0 minus=0,20,0,0,0 minutes=-1,14,9,0,-1 model=0,19,1,0,0
module=10,0,0,0,0 molar=0,20,0,0,0 moles=0,20,0,0,0 momentum=0,35,0,0,0 monetary=0,0,25,0,0
monologue=0,0,0,40,0 moral=0,-1,27,-1,0 morallywrong=0,0,25,0,0 mostlikely=0,-1,26,0,0
moviereview=0,0,0,40,0 moviereviews=0,0,0,0,20 multiple=0,18,2,0,0 muscle=0,0,25,0,0
namedentities=0,0,0,0,45 neuralnetwork=0,35,0,0,0 newton=0,20,0,0,0 newtons=0,20,0,0,0
nextinthesequence=0,20,0,0,0 nextnumber=0,20,0,0,0 nodes=0,20,0,0,0 novel=0,1,0,25,0
nowyouare=0,0,0,40,0 nullhypothesis=0,35,0,0,0 nullpointerexception=40,0,0,0,0 number=3,4,1,0,-1
numberof=3,16,2,-1,-1 numpy=40,0,0,0,0 nutrition=0,0,25,0,0 occurs=-1,-2,14,-1,0 older=0,20,0,0,0
onascaleof=0,0,0,0,45 operation=0,16,4,0,0 orbital=0,17,3,0,0 originstory=0,0,0,40,0
otherwise=10,0,0,0,0 ounces=0,20,0,0,0 outline=-1,-1,3,24,0 output=9,-3,5,-1,0
outputinjson=0,0,0,0,45 outputintheformat=0,0,0,0,45 overfitting=0,35,0,0,0 overtaken=0,23,0,-2,0
oxidation=0,20,0,0,0 pandas=40,0,0,0,0 paragraph=0,-1,-1,28,0 parameters=0,20,0,0,0
paraphrase=0,0,0,40,0 parse=25,0,0,0,0 patient=0,0,25,0,0 pendulum=0,20,0,0,0 percent=0,17,4,0,0
percentage=0,16,4,0,0 percentagechance=0,35,0,0,0 perimeter=0,20,0,0,0 permittivity=0,35,0,0,0
persona=0,0,0,41,0 persuasive=0,0,0,25,0 persuasiveemail=0,0,0,40,0 philosophy=0,1,25,0,0
photon=0,35,0,0,0 pictureyourself=0,-1,-1,43,0 planet=0,0,25,0,0 planets=0,0,25,0,0
please=0,-4,-2,10,6 poem=0,0,0,40,0 politeemail=0,0,0,40,0 political=0,-1,20,0,7
polynomial=4,33,-2,0,0 population=0,3,22,0,0 pounds=0,21,0,0,0 predicatelogic=0,36,-1,0,0
premise=0,35,0,0,0 premises=0,35,0,0,0 presentedtexts=0,0,0,0,45 president=0,5,15,0,6
pressrelease=0,0,0,40,0 pretend=0,0,0,40,0 pretendtobe=0,0,0,40,0 pretendyou=0,0,0,40,0
price=-1,17,5,0,-1 primarily=0,0,10,0,0 prime=0,20,0,0,0 printf=40,0,0,0,0 probability=0,29,0,6,0
product=0,15,5,0,0 productdescription=0,0,0,40,0 profit=-1,15,2,0,4 program=25,-2,2,0,0
programming=25,0,0,0,0 programthat=41,0,0,0,0 proof=0,34,0,1,0 proofread=0,0,0,40,0
propositional=0,35,0,0,0 protein=0,0,25,0,0 prove=0,30,4,1,0 psychology=0,0,25,0,0
public=0,0,25,0,0 pullrequest=40,0,0,0,0 puzzle=0,35,0,0,0 python=41,-3,2,0,0 quadratic=0,20,0,0,0
query=10,0,0,0,0 queue=1,20,-1,0,0 radius=0,19,2,0,0 random=0,20,1,0,0 randomsample=0,38,-3,0,0
ratingforeach=0,0,0,0,45 ratio=-1,14,9,0,-1 reaction=0,18,5,-2,0 realnumbers=0,36,-1,0,0
rectangle=0,20,0,0,0 recursion=25,0,0,0,0 recursive=25,0,0,0,0 refactor=40,0,0,0,0
refersto=0,0,25,0,0 refraction=0,35,0,0,0 regex=40,0,0,0,0 regression=0,35,0,0,0
religion=0,0,25,0,0 remainder=0,35,0,0,0 remaining=0,20,0,0,0 residuals=0,35,0,0,0
resistance=0,35,0,0,0 resistor=0,35,0,0,0 results=1,-1,10,0,0 return=20,-10,1,0,-1
returnfalse=25,0,0,0,0 returns=11,-3,2,0,0 returnself=40,0,0,0,0 returnstrue=25,0,0,0,0
returnstrueif=40,0,0,0,0 returntheresultsas=0,0,0,0,45 returntrue=25,0,0,0,0 rewrite=0,0,0,40,0
rhyme=0,-1,0,26,0 riddle=0,35,0,0,0 roleof=0,0,0,40,0 roleplay=0,0,0,40,0 rotating=0,22,-2,0,0
sample=0,19,1,0,0 scene=0,0,0,10,0 screenplay=0,0,0,40,0 script=23,-1,4,0,0 second=-1,9,0,0,-1
security=0,0,25,0,0 segfault=40,0,0,0,0 selectfrom=40,0,0,0,0 sells=0,20,0,0,0
sentiment=0,0,0,0,20 sentimentofeach=0,0,0,0,45 server=10,-1,1,0,0 shadow=0,20,0,0,0
share=0,-6,7,10,0 shellscript=40,0,0,0,0 short=0,-5,3,13,0 shortstory=0,0,0,40,0
siblings=0,20,0,0,0 sisters=0,20,0,0,0 slogan=0,0,0,40,0 slower=0,20,0,0,0 social=0,-3,21,0,7
society=0,4,21,0,0 software=10,2,-1,0,0 soliloquy=0,0,0,40,0 solve=0,35,-7,0,7
songlyrics=0,0,0,40,0 sorted=10,-3,3,0,0 sorting=10,0,0,0,0 sourcecode=40,0,0,0,0
speaklike=0,0,0,40,0 species=0,0,25,0,0 speech=0,0,0,25,0 speed=0,18,3,0,0 spend=0,20,0,0,0
spends=0,20,0,0,0 spins=0,20,0,0,0 sqlquery=40,0,0,0,0 squareroot=0,34,0,1,0 stacktrace=40,0,0,0,0
standarddeviation=0,37,-1,0,0 stars=0,0,25,0,0 statement1=0,37,-2,0,0 stationary=0,35,0,0,0
stayincharacter=0,0,0,40,0 stepbystep=0,32,-3,6,0 story=-1,-2,-1,24,5 strategies=0,-1,4,0,7
string=28,-1,-1,-1,0 strings=25,0,0,0,0 subarray=25,0,0,0,0 subgroup=0,35,0,0,0
subjectto=0,21,-1,0,0 substring=25,0,0,0,0 summarizethetable=0,0,0,0,20 supposeyouare=0,-1,0,41,0
survey=0,1,25,0,0 syllogism=0,35,0,0,0 symptoms=0,0,25,0,0 tabular=0,0,0,0,20 tagline=0,0,0,40,0
takeonthepersona=0,0,0,40,0 takeontherole=0,0,0,40,0 talklike=0,0,0,40,0 tellmeajoke=0,0,0,40,0
tellmeastory=0,0,0,40,0 temperature=0,18,2,0,0 thanks=0,0,0,40,0 thankyou=0,0,0,40,0
themain=0,-1,19,0,7 theorem=0,35,0,0,0 theory=0,0,25,0,0 therefore=0,20,0,0,0 third=-1,9,1,0,0
timecomplexity=25,0,0,0,0 times=1,15,5,0,0 timesas=0,35,0,0,0 timeseries=0,18,2,0,0
toast=0,0,0,25,0 torque=0,35,0,0,0 total=-2,14,10,-1,-1 traceback=40,0,0,0,0 trade=0,0,26,0,0
training=0,20,0,0,0 transformer=0,20,0,0,0 translate=0,0,0,25,0 translator=0,0,0,25,0
travelblog=0,0,0,40,0 treatment=0,0,25,0,0 treaty=0,0,25,0,0 triangle=0,21,0,0,0
truefalse=0,21,-1,0,0 truthtable=0,35,0,0,0 tuple=10,0,0,0,0 twice=0,21,0,0,0 twiceas=0,35,0,0,0
typescript=40,0,0,0,0 unemployment=0,0,25,0,0 uniquevariable=0,0,0,0,20 unittest=40,0,0,0,0
unittests=40,0,0,0,0 usually=0,-1,12,0,0 valid=0,18,2,0,0 value=0,8,2,0,-1 variable=10,3,-2,0,0
variance=0,20,0,0,0 vector=0,20,0,0,0 vectors=0,20,0,0,0 velocity=0,35,0,0,0
videoscript=0,0,0,40,0 virus=0,0,25,0,0 vitamin=0,0,25,0,0 vivid=0,0,-1,26,0 voltage=0,35,0,0,0
volume=0,24,-4,0,0 watts=0,20,0,0,0 wavelength=0,32,3,0,0 website=10,0,0,0,0 wedding=0,0,0,40,0
weeks=0,18,2,0,0 whatare=0,0,26,0,0 whatis=-1,11,17,-1,-1 whatisthetotal=0,30,5,0,0
where=0,4,9,-3,-1 which=-1,5,9,-1,-2 whichdirection=0,20,0,0,0
whichofthefollowingbestdescribes=0,0,25,0,0 whitenoise=0,20,0,0,0 women=0,0,25,0,0
world=0,-3,3,9,0 wouldyou=0,0,0,25,0 wouldyousay=0,0,0,40,0 write=0,-4,3,26,0
writeafunction=40,0,0,0,0 writealetter=0,0,0,40,0 writeanemail=0,0,0,40,0 writeaprogram=40,0,0,0,0
writeaspeech=0,0,0,40,0 writecode=40,0,0,0,0 yaml=0,0,0,0,20 youarea=0,-2,0,42,0
youarean=0,0,0,40,0 younger=0,20,0,0,0 youradventures=0,0,0,40,0 yourcharacter=0,0,0,40,0
yourcrew=0,0,0,25,0 yourdaily=0,0,0,40,0 youremotions=0,0,0,40,0 yourexperience=0,0,0,40,0
yourfeelings=0,0,0,40,0 yourlifeas=0,0,0,40,0 yourlove=0,0,0,40,0 youwillbemy=0,0,0,40,0
"""


def _read(table: str) -> dict[str, tuple[int, ...]]:
    cells = (cell.split("=") for cell in table.split())
    return {term.replace("_", " "): tuple(map(int, row.split(","))) for term, row in cells}


WEIGHTS: Mapping[str, tuple[int, ...]] = _read(_TABLE)
